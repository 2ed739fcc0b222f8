"""The command ``vit-explain``: what it offers, and how every error ends in one line and an exit code."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from ._version import __version__
from .commands import compare, evaluate, explain, inspect, methods, metrics, models, sweep
from .errors import VitExplainError
from .terminal import complain, escaped, mute

# The base of every error in the use of a command, whichever parser typer has below it.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]
STOPPED = 130  # by Ctrl-C, which typer turns into this code itself

app = typer.Typer(
    # Plain help: formatting it through rich takes longer than the rest of the program's start.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command()(explain.explain)
app.command()(compare.compare)
app.command()(evaluate.evaluate)
app.command()(sweep.sweep)
app.command()(methods.methods)
app.command()(metrics.metrics)
app.command()(models.models)
app.command()(inspect.inspect)


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"vit-explain {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Show where a Vision Transformer looked, and which pixels spoke for a class."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; 0 for success, 1 where some images, methods or metrics failed, 2 for an error in one line."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    return said_in_one_line(lambda: app(args=given or ["--help"], prog_name="vit-explain", standalone_mode=False) or 0)


def said_in_one_line(run: Callable[[], int]) -> int:
    """The exit code of ``run``, its errors told to the person at the terminal."""
    # The hub's library reports every retry; it reads this when it is imported, and its progress bars stay.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    escaped()
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:  # what libraries say to programmers; python -W default shows it
                warnings.simplefilter("ignore")
            code = run()
        sys.stdout.flush()
    except VitExplainError as error:
        complain(str(error))
        return 2
    except UsageError as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "vit-explain"
        complain(f"{error.format_message().rstrip('.')} (see {path} --help)")  # type: ignore[attr-defined]
        return 2
    except (KeyboardInterrupt, typer.Abort):
        code = STOPPED
    except (BrokenPipeError, SystemExit):  # as which typer raises the former
        mute()
        return 0
    except OSError as error:
        complain(f"standard output cannot be written to: {error.strerror}")
        return 2
    if code == STOPPED:
        complain("stopped")
    return code
