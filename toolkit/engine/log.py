"""What a run says: short lines and one progress bar on the terminal, the same lines in ``log.txt``.

Everything goes to standard error, so that standard output holds results only. Without a terminal the bar becomes
one line every few seconds.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

SECONDS_PER_LINE = 15.0


class Log:
    """Terminal and log file of one process.

    Args:
        quiet: say nothing on the terminal (errors are the command line's business).
        verbose: also say details, and every figure as it is logged instead of showing a bar.
        main: only the main process of several says or writes anything.
    """

    def __init__(self, quiet: bool = False, verbose: bool = False, main: bool = True):
        self.verbose = verbose
        self.console = Console(stderr=True, quiet=quiet or not main, highlight=False, soft_wrap=True)
        self._main = main
        self._file: Path | None = None

    def of_process(self, main: bool) -> Log:
        """This log, silenced where it is not the main process's."""
        return self if main else Log(quiet=True, main=False)

    def to_file(self, path: Path | None) -> None:
        """From now on also append every line to ``path``."""
        self._file = path if self._main else None

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)
        self._write(text)

    def detail(self, text: str) -> None:
        """Say something that only ``verbose`` wants to know."""
        if self.verbose:
            self.say(text)

    def record_exception(self, error: BaseException) -> None:
        """Keep the traceback in the log file; the terminal then shows the short error only."""
        if self._file is not None:
            error.recorded_in = self._file  # type: ignore[attr-defined]
        self._write("".join(traceback.format_exception(error)).rstrip())

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[ProgressBar | ProgressLines]:
        """A bar, or occasional lines where nobody watches; gone when the block is left."""
        if not self.console.is_terminal or self.console.quiet or self.verbose:
            yield ProgressLines(self, description, total)
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[note]}"), console=self.console, transient=True) as bar:
            yield ProgressBar(bar, bar.add_task(description, total=total, note=""))

    def _write(self, text: str) -> None:
        if self._file is not None:
            stamp = datetime.now().strftime("%H:%M:%S")
            with self._file.open("a", encoding="utf-8") as file:
                file.write(f"{stamp} {text}\n")


class ProgressBar:
    """A bar on a terminal."""

    def __init__(self, bar: Progress, task: TaskID):
        self._bar, self._task = bar, task

    def at(self, done: int, note: str = "") -> None:
        """Show that ``done`` units are done."""
        self._bar.update(self._task, completed=done, note=note)


class ProgressLines:
    """Progress as plain lines, at most one every ``SECONDS_PER_LINE`` seconds unless the log is verbose."""

    def __init__(self, log: Log, description: str, total: int):
        self._log, self._description, self._total = log, description, total
        self._last = time.monotonic()

    def at(self, done: int, note: str = "") -> None:
        if self._log.verbose or time.monotonic() - self._last >= SECONDS_PER_LINE:
            self._last = time.monotonic()
            self._log.say(f"{self._description}: {done}/{self._total} {note}".rstrip())
