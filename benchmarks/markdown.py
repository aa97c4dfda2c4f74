"""Tables and pages in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from benchmarks.machine import line
from benchmarks.record import Record, Rows


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], text: Collection[int] = (0,)
) -> list[str]:
    """Lines of a table; numbers go to the right in all columns but those of ``text``."""
    rule = "|" + "".join("---|" if n in text else "---:|" for n in range(len(head)))
    return [_row(head), rule, *map(_row, rows)]


def page(
    title: str,
    topic: str,
    record: Record,
    tables: dict[str, Callable[[Rows], list[str]]],
    note: str = "",
) -> str:
    """Machines and tables of those parts that the record has."""
    parts = [part for part in tables if part in record]
    machines = sorted({line(record[part]["machine"]) for part in parts})
    manual = f"How it is measured: `python -m benchmarks {topic} --help`.{note}"
    lines = [f"# {title}", "", *machines, "", manual]
    for part in parts:
        lines += ["", *tables[part](record[part]["rows"])]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
