"""The tables of the gates, from the records alone."""

from __future__ import annotations

from argparse import ArgumentTypeError
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence.records import Record
from benchmarks.evidence.report import environments, mixed
from benchmarks.evidence.settings import GATES, Preset
from benchmarks.evidence.summary import difference
from benchmarks.markdown import table
from benchmarks.record import write as write_json

RELEASED = "released"
_UARS = {"validation": "Validation UAR", "seen": "Seen UAR", "unseen": "Unseen UAR"}
_CHANGES = ("backwards", "shifted", "mirrored")


def write(found: dict[str, list[Record]], preset: Preset, path: Path) -> None:
    """Write all numbers to ``path``, and the tables beside it."""
    if RELEASED not in found:
        raise ArgumentTypeError(f"gates: expected runs of {RELEASED}, found none")
    numbers = {
        "preset": asdict(preset),
        "environments": environments(found),
        "variants": {name: _variant(records) for name, records in found.items()},
    }
    write_json(path, numbers)
    path.with_suffix(".md").write_text(page(numbers))


def page(numbers: Record) -> str:
    """What `write` put into JSON, in Markdown."""
    preset, variants = Preset(**numbers["preset"]), numbers["variants"]
    lines = [
        f"# Gates: {preset.data}",
        "",
        *mixed(numbers["environments"]),
        "Means over runs of attention alone, each with its own seed and source left out. Modules "
        "are counted from the input. Deviation: standard deviation of the gate over test clips of "
        "seen sources. Variance explained, in percent: by the place alone (the frame's index, the "
        "position), by the clip alone, by the sum of both; the rest is what a clip does at a "
        "place of its own. A clip is played backwards, begins later (held for three frames of "
        "16), or is mirrored: correlation of its gate with the gate changed alike / with the gate "
        "as it was. Loss: points of UAR on seen / unseen sources where the gate's mean over the "
        "clips replaces it. How to run it: `python -m benchmarks evidence --help`.",
        "",
        "## Variants",
        "",
        "What lets the clip into the temporal gate, at equal epochs, and the difference from the "
        "released module in points of UAR, paired by seed and source left out.",
        "",
        *table(
            ["Temporal gate", "Runs", *_UARS.values(), *(f"Δ {name}" for name in _UARS)],
            [_uars(name, variants) for name in variants],
        ),
        "",
    ]
    for variant in variants.values():
        lines += [f"## {variant['label']}", "", *table(*_gates(variant["gates"])), ""]
        lines += [*_inside(variant["gates"]), ""]
    lines += [f"Budget: `{preset}`.", ""]
    lines += [f"- {GATES[name].label}: {GATES[name].describe()}" for name in variants]
    return "\n".join(lines) + "\n"


def _variant(records: list[Record]) -> dict[str, Any]:
    gates = [record["gates"] for record in records]
    return {
        "label": records[0]["label"],
        "runs": [
            {
                "seed": record["seed"],
                "held_out": record["held_out"],
                "validation": record["validation"]["uar"],
                **{name: record["test"][name]["uar"] for name in ("seen", "unseen")},
            }
            for record in records
        ],
        "gates": {name: _mean([each[name] for each in gates]) for name in gates[0]},
    }


def _mean(values: list[Any]) -> Any:
    """The mean at every place of nested dictionaries, over what is there."""
    if isinstance(values[0], dict):
        return {key: _mean([value[key] for value in values]) for key in values[0]}
    there = [value for value in values if value is not None]
    return round(float(np.mean(there)), 4) if there else None


def _uars(name: str, variants: dict[str, Any]) -> list[str]:
    runs, released = variants[name]["runs"], variants[RELEASED]["runs"]
    means = [f"{np.mean([run[uar] for run in runs]):.1f}" for uar in _UARS]
    gaps = [difference(runs, released, uar) for uar in _UARS]
    return [variants[name]["label"], str(len(runs)), *means, *(f"{gap.mean:+.1f}" for gap in gaps)]


def _gates(gates: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    head = ["Gate", "Deviation", "Place", "Clip", "Both", *map(str.capitalize, _CHANGES), "Loss"]
    cells = []
    for name, gate in gates.items():
        parts = [_number(gate.get(part), ".1f") for part in ("place", "clip", "both")]
        pairs = [gate.get(change, {}).values() for change in _CHANGES]
        changed = [" / ".join(_number(value, "+.2f") for value in pair) or "–" for pair in pairs]
        loss = " / ".join(_number(value, "+.1f") for value in gate["loss"].values())
        cells.append([name, _number(gate.get("deviation"), ".3f"), *parts, *changed, loss])
    return head, cells


def _inside(gates: dict[str, Any]) -> list[str]:
    """What explains the steps of the temporal branch, by module."""
    named = {name: gate["inside"] for name, gate in gates.items() if "inside" in gate}
    cells = [
        [name, *(" / ".join(_number(x, ".1f") for x in step.values()) for step in each.values())]
        for name, each in named.items()
    ]
    steps = next(iter(named.values()))
    return [
        "Variance explained by place / clip / both on the way to the temporal gate: of the mean "
        "statistic A, the importance I, and the tokens F = L I. Places are bins of frames.",
        "",
        *table(["Gate", *steps], cells),
    ]


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"
