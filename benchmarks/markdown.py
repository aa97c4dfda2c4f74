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
    """Tables of those parts that the record has; their machine on top, or over each if several."""
    machines = {part: line(record[part]["machine"]) for part in tables if part in record}
    apart = len(set(machines.values())) > 1
    manual = f"How it is measured: `python -m benchmarks {topic} --help`.{note}"
    lines = [f"# {title}", "", *([] if apart else [*set(machines.values()), ""]), manual]
    for part, machine in machines.items():
        first, *rest = tables[part](record[part]["rows"])
        lines += ["", first, *(["", machine] if apart else []), *rest]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
