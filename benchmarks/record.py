"""A topic's record: one JSON file of parts, each a list of rows with the machine it is from."""

from __future__ import annotations

import json
import traceback
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import describe, line
from hdf_modules import HDFError

Rows = list[dict[str, Any]]
Record = dict[str, dict[str, Any]]
REPORT = "report"  # in place of a part: draw the record as it is


@dataclass(frozen=True)
class Part:
    """What is measured in one go.

    Args:
        measure: gives the rows; a generator's are kept one by one.
        key: columns that name a row. Rows of other names stay, if they are of the same machine,
            versions and sources; without a key all rows are replaced.
    """

    measure: Callable[[Namespace], Iterable[dict[str, Any]]]
    key: tuple[str, ...] = ()


def add_parts(add: Callable[..., Any], parts: Iterable[str]) -> None:
    """Add the option that `update` reads."""
    names = f"some of {', '.join(parts)}, all by default; {REPORT} alone draws the record again"
    add("parts", nargs="*", metavar="PART", help=names)


def update(
    path: Path,
    parts: dict[str, Part],
    options: Namespace,
    report: Callable[[Record, Path], None],
) -> None:
    """Measure the parts that are asked for, each row into the record as soon as it is there.

    A part that fails takes neither its own rows nor other parts with it, nor the report.

    Raises:
        SystemExit: at the end, with the names of what failed.
    """
    check(options.parts, (*parts, REPORT), "PART")
    record: Record = json.loads(path.read_text()) if path.exists() else {}
    wanted = [name for name in options.parts or parts if name != REPORT]
    if not wanted and not record:
        raise ArgumentTypeError(f"{REPORT}: expected a record, found no {path}")
    machine = describe()
    if wanted:
        print(line(machine), flush=True)
    failed = []
    for name in wanted:
        rows: Rows = []
        try:
            for row in parts[name].measure(options):
                rows.append(row)
                record[name] = merge(record.get(name), rows, parts[name].key, machine)
                write(path, record)
        except HDFError:  # of what was asked for
            raise
        except Exception:  # machines fail in many ways
            traceback.print_exc()
            failed.append(name)
    report(record, path)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def check(found: Iterable[str], known: Iterable[str], argument: str) -> None:
    """Refuse what is not known, by the names of what is."""
    unknown = [name for name in found if name not in known]
    if unknown:
        expected = ", ".join(known)
        raise ArgumentTypeError(f"{argument}: expected some of {expected}, found {unknown[0]}")


def merge(
    before: dict[str, Any] | None, rows: Rows, key: tuple[str, ...], machine: dict[str, Any]
) -> dict[str, Any]:
    """Replace rows of the same name; keep the others unless they are stale, and say if not."""
    if before is None or not key:
        return {"machine": machine, "rows": rows}

    def named(rows: Rows) -> dict[tuple[Any, ...], dict[str, Any]]:
        return {tuple(row[column] for column in key): row for row in rows}

    old, new = named(before["rows"]), named(rows)
    if before["machine"] != machine:
        lost = len(old.keys() - new.keys())
        print(f"{lost} rows of another machine, version or source are gone", flush=True)
        old = {}
    merged = old | new
    # Sizes go up; names stay in the order in which they came.
    order = sorted(merged, key=lambda name: [part for part in name if isinstance(part, int)])
    return {"machine": machine, "rows": [merged[name] for name in order]}


def write(path: Path, content: Any) -> None:
    """Write a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
