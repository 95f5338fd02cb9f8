"""The ``kvant`` command. Thin: every command is a call of the library and a way to show what it gave."""

from __future__ import annotations

import io
import os
import sys

__all__ = ["main"]

_NEEDS = ("typer", "rich")


def main() -> None:
    """Entry point of the ``kvant`` command. Exit codes: 0 done, 1 an error, 2 wrong usage, 130 Ctrl-C."""
    _open_standard_streams()
    try:
        from kvant.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in _NEEDS:
            raise
        print(f"kvant: the command line needs {error.name}: pip install 'kvant[cli]'", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    try:
        app(prog_name="kvant")
    except OSError as error:  # of what is printed before a command begins: its help, the version
        print(f"kvant: error: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)


def _open_standard_streams() -> None:
    """Where the caller closed some, /dev/null takes their place.

    The next file that is opened would get the number otherwise, and whatever is said on standard error stand in it.
    """
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is this one, as all below it are open.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115 (for good)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of files and tensors may have letters that its encoding lacks. Standard error writes these so already.
        sys.stdout.reconfigure(errors="backslashreplace")
