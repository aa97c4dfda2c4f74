"""The Markdown table, the plots and the list of the search, from the records alone."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.evidence import figures, search
from benchmarks.evidence.records import Record
from benchmarks.evidence.settings import BASELINE, COMPARED, MAIN, Preset, Setting
from benchmarks.evidence.summary import (
    FEWEST,
    Difference,
    Run,
    difference,
    digest,
    restored,
    values,
)
from benchmarks.markdown import table
from benchmarks.record import write as write_json
from examples.train.report.style import styled

Runs = dict[str, list[Run]]
_METRICS = ("seen UAR", "unseen UAR", "seen WAR", "unseen WAR", "worst source", "corrupted UAR")


def write(
    found: dict[str, list[Record]], tried: dict[str, list[Record]], preset: Preset, path: Path
) -> None:
    """Write all numbers to ``path``, and table and figures beside it.

    Args:
        found: records of the rows; rows without one are left out.
        tried: records of the search.
        preset: the budget.
        path: of the numbers.
    """
    if BASELINE not in found:
        raise ArgumentTypeError(f"report: expected runs of {BASELINE}, found none")
    found = {name: found[name] for name in preset.rows if name in found}
    # the runs that every row has, so that means can be compared
    equal = {n: [r for r in records if r["seed"] < preset.seeds] for n, records in found.items()}
    numbers = {
        "preset": asdict(preset),
        "environments": environments(found),
        "rows": digest(equal),
        "main": digest({name: found[name] for name in MAIN if name in found}),
        "search": {name: candidate._asdict() for name, candidate in search.ranked(tried).items()},
    }
    write_json(path, numbers)
    path.with_suffix(".md").write_text(page(numbers, path.stem))
    with styled():
        drawn = {"differences": figures.differences(_every(numbers), preset.rows)}
        if preset.corrupted_clips:
            drawn["corruptions"] = figures.corruptions(equal, preset.rows)
        for name, figure in drawn.items():
            figure.savefig(path.with_name(f"{path.stem}_{name}.png"), dpi=80)


def page(numbers: Record, stem: str) -> str:
    """The whole ablation in Markdown, from what `write` put into JSON."""
    preset, every = Preset(**numbers["preset"]), _every(numbers)
    rows = preset.rows
    found = {name: restored(row) for name, row in numbers["rows"].items()}
    candidates = {name: search.Candidate(**each) for name, each in numbers["search"].items()}
    lines = [
        "# Heterogeneity",
        "",
        *_section("rows", _compared(numbers, preset, every, found)),
        f"![Paired differences]({stem}_differences.png)",
        "",
        *([f"![Corruptions]({stem}_corruptions.png)", ""] if preset.corrupted_clips else []),
        *_section("sources", _by_source(found, rows)),
        "## Hyper-parameters",
        "",
        f"Budget of every row: `{preset}`.",
        "",
        *(f"- {rows[name].label}: {rows[name].describe()}" for name in found),
        *search.table(candidates),
    ]
    return "\n".join(lines) + "\n"


def _section(name: str, lines: list[str]) -> list[str]:
    """Lines that the documentation shows by their name."""
    start, end = (f"<!-- --8<-- [{side}:{name}] -->" for side in ("start", "end"))
    return [start, "", *lines, end, ""]


def _compared(numbers: Record, preset: Preset, every: Runs, found: Runs) -> list[str]:
    """What is missing, the main result, the means of every row, and rows against others."""
    return [
        *_unfinished(every, preset),
        *mixed(numbers["environments"]),
        *_main(every, preset.rows),
        "## The ablation",
        "",
        "Means over the runs of a row, each with its own seed and source left out; in percent. Δ: "
        "paired difference from the baseline with its 95% bootstrap interval over the runs; in "
        "bold where the interval is clear of zero. Fit: accuracy on the training clips. What is "
        "measured, and how to run it: `python -m benchmarks evidence --help`.",
        "",
        *table(*_ablation(found, preset.rows)),
        "",
        *_versus(found, preset.rows),
    ]


def environments(found: dict[str, list[Record]]) -> list[Record]:
    """The different environments of the records: one, unless runs were gathered from several."""
    seen = {json.dumps(r["environment"]) for records in found.values() for r in records}
    return [json.loads(text) for text in sorted(seen)]


def _every(numbers: Record) -> Runs:
    """All runs of every row: the main ones have more than are compared."""
    return {name: restored(numbers["main"].get(name, row)) for name, row in numbers["rows"].items()}


def _unfinished(every: Runs, preset: Preset) -> list[str]:
    """Say of which rows there are fewer runs than planned."""
    short: dict[int, list[str]] = {}
    for name, setting in preset.rows.items():
        runs = len(every.get(name, []))
        if runs < preset.runs(name):
            short.setdefault(runs, []).append(setting.label)
    parts = "; ".join(f"{runs} of {', '.join(labels)}" for runs, labels in sorted(short.items()))
    planned = f"{preset.seeds} runs of every row and {preset.main_seeds} of the main ones"
    return [f"**Unfinished**: {planned} are planned; there are {parts}.", ""] if short else []


def mixed(found: list[Record]) -> list[str]:
    """Say in what the runs' environments differ."""
    names = sorted({name for each in found for name in each})
    differ = ", ".join(name for name in names if len({each.get(name) for each in found}) > 1)
    return [f"**Mixed**: runs of different {differ} are compared.", ""] if differ else []


def _main(every: Runs, rows: dict[str, Setting]) -> list[str]:
    """The whole method against the baseline, by the source left out."""
    if not all(name in every for name in MAIN):
        return []
    (baseline, whole), labels = (every[n] for n in MAIN), [rows[n].label for n in MAIN]
    wanted = [metric for metric in _METRICS if metric in baseline[0]]
    gaps = {metric: difference(whole, baseline, metric) for metric in wanted}
    sources = []
    for source in dict.fromkeys(run["held_out"] for run in baseline):
        pair = [[run for run in runs if run["held_out"] == source] for runs in (baseline, whole)]
        uars = [" ".join(f"{uar:.1f}" for uar in values(side, "unseen UAR")) for side in pair]
        gap = difference(pair[1], pair[0], "unseen UAR")
        sources.append([source, *uars, f"{gap.mean:+.1f}"])
    return [
        f"## {labels[1]}, against {labels[0]}",
        "",
        f"Paired differences of {gaps['unseen UAR'].runs} runs, each with its own seed; "
        "95% bootstrap intervals:",
        "",
        *table([f"Δ {name}" for name in gaps], [[_interval(gap) for gap in gaps.values()]], ()),
        "",
        "UAR on the source left out, in every run:",
        "",
        *table(["Left out", *labels, "Mean difference"], sources),
        "",
    ]


def _ablation(found: Runs, rows: dict[str, Setting]) -> tuple[list[str], list[list[str]]]:
    """Head and cells of the table: the columns that were measured."""
    columns = [column for column in _COLUMNS if column[1] in found[BASELINE][0]]
    head = ["Row", "Runs", *(title for title, *_ in columns)]
    cells = [
        [rows[name].label, str(len(runs))]
        + [
            _interval(difference(runs, found[BASELINE], metric))
            if title.startswith("Δ")
            else f"{values(runs, metric).mean():.1f}"
            for title, metric in columns
        ]
        for name, runs in found.items()
    ]
    return head, cells


# Title and metric; with a Δ its difference from the baseline.
_COLUMNS = (
    ("Fit", "fit"),
    ("Seen UAR", "seen UAR"),
    ("Unseen UAR", "unseen UAR"),
    ("Δ seen UAR", "seen UAR"),
    ("Δ unseen UAR", "unseen UAR"),
    ("Δ unseen WAR", "unseen WAR"),
    ("Worst source", "worst source"),
    ("Δ worst source", "worst source"),
    ("Worst class", "worst class"),
    ("Corruption loss", "corruption loss"),
    ("Δ corrupted UAR", "corrupted UAR"),
    ("Worst people", "worst people"),
    ("Epochs to 50%", "epochs to 50%"),
)


def _versus(found: Runs, rows: dict[str, Setting]) -> list[str]:
    """Rows against others than the baseline: parts of them, and their controls."""
    lines: list[str] = []
    for mine, others in COMPARED.items():
        if mine not in found:
            continue
        wanted = [metric for metric in _METRICS if metric in found[mine][0]]
        cells = [
            [rows[name].label]
            + [_interval(difference(found[mine], found[name], metric)) for metric in wanted]
            for name in others
            if name in found
        ]
        lines += [
            f"**{rows[mine].label}**, less each of these rows, paired:",
            "",
            *table(["Less", *(f"Δ {metric}" for metric in wanted)], cells),
            "",
        ]
    return lines


def _by_source(found: Runs, rows: dict[str, Setting]) -> list[str]:
    """Every row on each source left out."""
    sources = list(dict.fromkeys(run["held_out"] for run in found[BASELINE]))
    cells = []
    for name, runs in found.items():
        parts = [[run for run in runs if run["held_out"] == source] for source in sources]
        means = [values(part, "unseen UAR").mean() if part else np.nan for part in parts]
        shown = [f"{mean:.1f}" for mean in (*means, np.min(means))]
        cells.append([rows[name].label, *(text.replace("nan", "–") for text in shown)])
    return [
        "## By the source left out",
        "",
        "Mean UAR on it, over the runs that leave it out.",
        "",
        *table(["Row", *sources, "Worst"], cells),
        "",
    ]


def _interval(gap: Difference) -> str:
    if gap.runs < FEWEST:
        return f"{gap.mean:+.1f}"
    if gap.low == gap.high:
        return "–"
    text = f"{gap.mean:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}]"
    return f"**{text}**" if gap.low * gap.high > 0 else text
