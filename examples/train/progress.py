"""What a run shows on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar


class Progress:
    """A bar per epoch with loss, WAR and UAR; silent on all processes but the first."""

    def __init__(self, quiet: bool = False) -> None:
        self._console = Console(quiet=quiet, soft_wrap=True)

    def waiting(self, what: str) -> AbstractContextManager[Any]:
        return self._console.status(what)

    def left_out(self, reasons: tuple[str, ...]) -> None:
        """Say how many clips were skipped on request, and which."""
        if reasons:
            self._console.print(f"Left out   {len(reasons)} clips", highlight=False)
        for reason in reasons:
            self._console.print(f"           {reason}", highlight=False)

    @contextmanager
    def epoch(
        self, number: int, total: int, steps: int
    ) -> Iterator[Callable[[int, dict[str, float]], None]]:
        """Show an epoch; the callable takes the step and the running scores."""
        columns = (
            TextColumn("epoch {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[scores]}"),
        )
        with Bar(*columns, console=self._console) as bar:
            task = bar.add_task(f"{number}/{total}", total=steps, scores="")

            def report(step: int, scores: dict[str, float]) -> None:
                bar.update(task, completed=step, scores=_line(scores))

            yield report

    def validated(self, scores: dict[str, float]) -> None:
        self._console.print(f"          validation {_line(scores)}", highlight=False)

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
