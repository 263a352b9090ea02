"""``python -I -m torchgeo_debias.worker``: keep stdin and stdout for the protocol, then serve."""

import os
import sys


def _claim() -> tuple[int, int]:
    """Descriptors of stdin and stdout that nobody else knows; what others read is empty, what they write is stderr.

    So neither a stray ``print`` nor a native library, nor a program that one of them starts, can break the protocol.
    """
    taken = os.dup(0), os.dup(1)  # not handed on to programs that are started
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return taken


if __name__ == "__main__":
    descriptors = _claim()  # before any import, which might write

    from torchgeo_debias.worker.server import main

    main(*descriptors, sys.argv[1:])
