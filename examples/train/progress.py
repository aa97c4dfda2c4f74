"""What a run shows on the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from examples.train import distributed
from hdf_modules import HDFError

Item = TypeVar("Item")


def track(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """Pass over items with a bar that says how much time is left."""
    with bar(what, total) as done:
        for item in items:
            yield item
            done(1)


@contextmanager
def bar(what: str, total: float) -> Iterator[Callable[[float], None]]:
    """Show a bar with the time left; the callable is told of what was done.

    It goes when all is done, and is silent on all processes but the first.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    silent = distributed.rank() > 0 or not _console().is_terminal
    with Bar(*columns, console=_console(), transient=True, disable=silent) as shown:
        task = shown.add_task(what, total=total)
        yield lambda done: shown.advance(task, done)


def _console(quiet: bool = False) -> Console:
    # paths are no markup: brackets and colons in them are what they are
    return Console(quiet=quiet, soft_wrap=True, markup=False, emoji=False)


class Progress:
    """A bar per epoch with loss, WAR and UAR; silent on all processes but the first.

    Args:
        quiet: whether to show nothing.
        again: the command that goes on with a run that was stopped.
    """

    def __init__(self, quiet: bool = False, again: str = "") -> None:
        self._console, self._quiet, self._again = _console(quiet), quiet, again
        self._began, self._epochs = time.monotonic(), 0

    def waiting(self, what: str) -> AbstractContextManager[Any]:
        return self._console.status(what)

    def left_out(self, reasons: tuple[str, ...]) -> None:
        """Say how many clips were skipped on request, and which."""
        if reasons:
            self._console.print(f"Left out   {len(reasons)} clips", highlight=False)
        for reason in reasons:
            self._console.print(f"           {reason}", highlight=False)

    @contextmanager
    def resumable(self, saved: Path) -> Iterator[None]:
        """Say how to go on, whatever stops the run; what is wrong before an epoch says it itself.

        With SystemExit rich answers to a pipe that nobody reads any more.
        """
        try:
            yield
        except BaseException as error:
            refused = isinstance(error, HDFError) and not self._epochs
            if saved.exists() and not (self._quiet or refused):
                print(f"saved: {saved}; to go on:\n{self._again}", file=sys.stderr)
            elif not (self._quiet or isinstance(error, Exception)):
                print("nothing is saved yet: the same command begins anew", file=sys.stderr)
            raise

    @contextmanager
    def epoch(
        self, number: int, total: int, steps: int
    ) -> Iterator[Callable[[int, dict[str, float]], None]]:
        """Show an epoch; the callable takes the step and the running scores."""
        columns = (
            TextColumn("epoch {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[scores]}"),
        )
        if not self._epochs:
            self._began = time.monotonic()
        self._epochs += 1
        with Bar(*columns, console=self._console) as bar:
            task = bar.add_task(f"{number}/{total}", total=steps, scores="")

            def report(step: int, scores: dict[str, float]) -> None:
                bar.update(task, completed=step, scores=_line(scores))

            yield report

    def validated(self, scores: dict[str, float], still: int) -> None:
        """Show the scores of an epoch, and how long the epochs to come will take."""
        left = still * (time.monotonic() - self._began) / max(1, self._epochs)
        tail = f"  {timedelta(seconds=round(left))} left" if left > 2 else ""
        self._console.print(f"          validation {_line(scores)}{tail}", highlight=False)

    def done(self, test: dict[str, Any], report: Path) -> None:
        self._console.print(f"Test       {_line(test)}", highlight=False)
        self._console.print(f"Report     {report.resolve()}", highlight=False)

    def folds(self, record: dict[str, Any]) -> None:
        """A line per fold, and what they come to."""
        for fold, test in record["folds"].items():
            self._console.print(f"Fold {fold}     {_line(test)}", highlight=False)
        mean, std = record["mean"], record["std"]
        shown = "  ".join(f"{name.upper()} {mean[name]:.2f} ± {std[name]:.2f}" for name in mean)
        self._console.print(f"Folds      {shown}", highlight=False)


def _line(scores: dict[str, Any]) -> str:
    shown = [f"loss {scores['loss']:.3f}"] if "loss" in scores else []
    return "  ".join([*shown, f"WAR {scores['war']:.1f}", f"UAR {scores['uar']:.1f}"])
