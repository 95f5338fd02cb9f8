"""The commands' frame: what they are called, and what an error becomes."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from kvant import KvantError, __version__
from kvant.cli import files, output, pose, quantize
from kvant.interrupts import interrupts_arrive

INTERRUPTED = 130
_NO_MEMORY = "can't allocate memory"  # what torch says


class Commands(TyperGroup):
    """A group of commands in which a user's error is one line on standard error, and Ctrl-C is no error."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; exits with 1 on an error of the library or the system, with 130 on Ctrl-C."""
        try:
            with interrupts_arrive():
                return super().invoke(ctx)
        except BrokenPipeError:
            # The reader, such as `head`, has seen enough. Without this Python complains again when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except (KvantError, OSError, MemoryError) as error:
            output.fail(_words(error))
            raise typer.Exit(1) from None
        except RuntimeError as error:
            if _NO_MEMORY not in str(error):
                raise
            output.fail(_words(MemoryError()))
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


def _words(error: Exception) -> object:
    """What the system says begins with the file, and without Python's number."""
    if isinstance(error, MemoryError):
        return f"not enough memory: {str(error) or 'less of it is free than this takes'}"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if type(error) is OSError and error.strerror:
        return error.strerror
    return error


app = typer.Typer(
    cls=Commands,
    help="Turn a trained PyTorch model into one int8 file, and run that file without PyTorch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"kvant {__version__}")
        raise typer.Exit


@app.callback()
def _frame(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    # What it says of damaged pictures and missing cameras is said by the commands, in one line each.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    output.show_warnings_briefly()


for command in (quantize.quantize, files.info, files.run, files.verify):
    app.command(help=output.help_of(command))(command)
app.add_typer(pose.app, name="pose")
