"""The command line without a process of its own: a command takes milliseconds, and ends as the program would."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from unittest import mock

from relay.cli import main


def run_here(*arguments: str | Path, **environment: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of ``relay`` with these arguments; nobody is at the terminal."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch("sys.argv", ["relay", *map(str, arguments)]),
        mock.patch("sys.stdin", io.StringIO()),
        mock.patch.dict(os.environ, {"COLUMNS": "200", **environment}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
    return status, out.getvalue(), err.getvalue()
