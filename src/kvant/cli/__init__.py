"""The ``kvant`` command. Thin: every command is a call of the library and a way to show what it gave."""

from __future__ import annotations

import sys

__all__ = ["main"]

_NEEDS = ("typer", "rich")


def main() -> None:
    """Entry point of the ``kvant`` command. Exit codes: 0 done, 1 an error, 2 wrong usage, 130 Ctrl-C."""
    try:
        from kvant.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in _NEEDS:
            raise
        print(f"kvant: the command line needs {error.name}: pip install 'kvant[cli]'", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    app(prog_name="kvant")
