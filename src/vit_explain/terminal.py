"""How the commands speak: results on standard output, trouble as one line on standard error."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

PACE_OVER = 600.0  # seconds over which it is averaged how fast things go


def complain(text: str) -> None:
    """One line on standard error."""
    print("vit-explain:", " ".join(text.split()), file=sys.stderr)


def screen(*, error: bool = False) -> Console:
    """A console that never breaks lines where no terminal asks for it, so that paths can be copied and searched."""
    from rich.console import Console

    class Unheard(Console):
        """Goes on silently where the reader of its output has seen enough: what is asked for are files."""

        def on_broken_pipe(self) -> None:
            self.quiet = True
            mute()

    return Unheard(stderr=error, highlight=False, markup=False, soft_wrap=True)


def escaped() -> None:
    """What a stream cannot encode, such as odd file names, is shown as its escape sequence."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def mute() -> None:
    """Nobody reads standard output any more. Python would complain once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_json(document: Any) -> None:
    """One JSON document on standard output, and a line end."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # JSON has escape sequences of its own
        text = json.dumps(document, indent=2, allow_nan=False)
    print(text)


@contextmanager
def progress(label: str, count: int) -> Iterator[Bars]:
    """Bars for ``count`` things on a terminal's standard error, gone in the end; none where that is no terminal."""
    console = screen(error=True)
    if not console.is_terminal:
        yield Bars(None, label, count)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Results go to standard output as they are: through the bars only if both are the same screen.
    with Progress(
        *columns,
        console=console,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
        speed_estimate_period=PACE_OVER,  # a step may take longer than the half a minute that is usual
    ) as bars:
        yield Bars(bars, label, count)


class Bars:
    """How many things are done, where there are several, and how many of its forwards the present one has behind it."""

    def __init__(self, shown: Progress | None, label: str, count: int) -> None:
        self._shown = shown
        self._all = shown.add_task(label, total=count) if shown is not None and count > 1 else None
        self._present: TaskID | None = None
        self._name = ""

    def step(self) -> None:
        """The present thing is done."""
        if self._shown is None:
            return
        if self._all is not None:
            self._shown.advance(self._all)
        if self._present is not None:
            self._shown.remove_task(self._present)
            self._present = None

    def watch(self, name: str) -> Callable[[int, int], None] | None:
        """What the present thing, under this name, may report (done, total) to; None where nobody sees it."""
        return None if self._shown is None else partial(self._report, name)

    def watch_each(self) -> Callable[[str, int, int], None] | None:
        """The same for things that follow one another: another name says that the one before is done."""
        return None if self._shown is None else self._follow

    def _follow(self, name: str, done: int, total: int) -> None:
        if self._name not in ("", name):
            self.step()
        self._report(name, done, total)

    def _report(self, name: str, done: int, total: int) -> None:
        assert self._shown is not None
        self._name = name
        if self._present is None:
            self._present = self._shown.add_task(name, total=total)
        self._shown.update(self._present, description=name, completed=done, total=total)
