"""The library's command line in one process, so that a test needs not import it anew: a list of words a line."""

from __future__ import annotations

import contextlib
import io
import json
import sys

from torchgeo_debias.cli import main

for line in sys.stdin:
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = ["torchgeo-debias", *json.loads(line)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    print(json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue()}), flush=True)
