"""``python -m benchmarks.tiling``: see :mod:`benchmarks.tiling.run`."""

import sys

from benchmarks.tiling.run import main

if __name__ == "__main__":
    sys.exit(main())
