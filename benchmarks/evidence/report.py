"""The Markdown table, the plots and the list of the search, from the records alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from benchmarks.evidence import figures, searched
from benchmarks.evidence.presets import Preset
from benchmarks.evidence.records import Record
from benchmarks.evidence.settings import BASELINE, MAIN, PARTS, WHOLE, Setting
from benchmarks.evidence.summary import METRICS, Difference, difference, digest, values
from examples.train.report.style import styled

Records = dict[str, list[Record]]
FEWEST = 5  # runs that an interval is given for: a bootstrap of two says nothing
_METRICS = ("seen UAR", "unseen UAR", "seen WAR", "unseen WAR", "corrupted UAR")

_HEAD = (
    "| Row | Runs | Fit | Seen UAR | Unseen UAR | Δ seen UAR | Δ unseen UAR | Δ unseen WAR "
    "| Worst source | Worst class | Corruption loss | Δ corrupted UAR |"
)


def write(
    found: Records,
    tried: Records,
    settings: tuple[Mapping[str, Setting], Mapping[str, Setting]],
    preset: Preset,
    folder: Path,
) -> None:
    """Write table, figures and all numbers; rows without a record are left out.

    Args:
        found: records of the rows.
        tried: records of the search.
        settings: the rows, and the candidates of the search.
        preset: the budget.
        folder: where to.
    """
    rows, candidates = settings
    every = {name: found[name] for name in rows if name in found}
    found = {name: _of_all_rows(records, preset) for name, records in every.items()}
    folder.mkdir(parents=True, exist_ok=True)
    text = table(every, rows, preset) + searched.table(tried, candidates)
    (folder / "heterogeneity.md").write_text(text)
    numbers = {
        "preset": asdict(preset),
        "environments": environments(every),
        "rows": digest(found, {name: rows[name].against for name in found}),
        "main": digest(
            {name: every[name] for name in MAIN if name in every}, dict.fromkeys(MAIN, BASELINE)
        ),
        "search": {name: candidate._asdict() for name, candidate in searched.ranked(tried).items()},
    }
    (folder / "heterogeneity.json").write_text(json.dumps(numbers, indent=1) + "\n")
    with styled():
        figures.differences(every, rows).savefig(folder / "heterogeneity_differences.png", dpi=80)
        figures.corruptions(found, rows).savefig(folder / "heterogeneity_corruptions.png", dpi=80)


def table(every: Records, rows: Mapping[str, Setting], preset: Preset) -> str:
    """The whole ablation in Markdown."""
    found = {name: _of_all_rows(records, preset) for name, records in every.items()}
    lines = [
        "# Heterogeneity",
        "",
        *_unfinished(every, rows, preset),
        *_main(every, rows),
        "## The ablation",
        "",
        "Means over the runs of a row, each with its own seed and source left out; in percent. Δ: "
        "paired difference from the baseline with its 95% bootstrap interval over the runs; in "
        "bold where the interval is clear of zero. Fit: accuracy on the training clips. What is "
        "measured, and how to run it: `python benchmarks/heterogeneity.py --help`.",
        "",
        _HEAD,
        "|---|" + "---:|" * (_HEAD.count("|") - 2),
        *(_row(rows[name].label, found[name], found[rows[name].against]) for name in found),
        "",
        *_versus(found, rows),
        "![Paired differences](heterogeneity_differences.png)",
        "",
        "![Corruptions](heterogeneity_corruptions.png)",
        "",
        *_settings(found, rows, preset),
    ]
    return "\n".join(lines) + "\n"


def environments(found: Records) -> list[Record]:
    """The different environments of the records: one, unless runs were gathered from several."""
    seen = {json.dumps(r["environment"]) for records in found.values() for r in records}
    return [json.loads(text) for text in sorted(seen)]


def _unfinished(found: Records, rows: Mapping[str, Setting], preset: Preset) -> list[str]:
    """Say of which rows there are fewer runs than planned."""
    short: dict[int, list[str]] = {}
    for name, setting in rows.items():
        runs = len(found.get(name, []))
        if runs < preset.runs(name):
            short.setdefault(runs, []).append(setting.label)
    parts = "; ".join(f"{runs} of {', '.join(labels)}" for runs, labels in sorted(short.items()))
    planned = f"{preset.seeds} runs of every row and {preset.main_seeds} of the main ones"
    return [f"**Unfinished**: {planned} are planned; there are {parts}.", ""] if short else []


def _of_all_rows(records: list[Record], preset: Preset) -> list[Record]:
    """The runs that every row has, so that means can be compared."""
    return [record for record in records if record["seed"] < preset.seeds]


def _main(every: Records, rows: Mapping[str, Setting]) -> list[str]:
    """The whole method against the baseline, by the source left out."""
    if not all(name in every for name in MAIN):
        return []
    baseline, whole = (every[name] for name in MAIN)
    gaps = {name: difference(whole, baseline, name) for name in _METRICS}
    count = gaps["unseen UAR"].runs
    lines = [
        f"## {rows[WHOLE].label}, against {rows[BASELINE].label}",
        "",
        f"Paired differences of {count} runs, each with its own seed; 95% bootstrap intervals:",
        "",
        "| " + " | ".join(f"Δ {name}" for name in gaps) + " |",
        "|" + "---:|" * len(gaps),
        "| " + " | ".join(_interval(gap) for gap in gaps.values()) + " |",
        "",
        "UAR on the source left out, in every run:",
        "",
        f"| Left out | {rows[BASELINE].label} | {rows[WHOLE].label} | Mean difference |",
        "|---|---:|---:|---:|",
    ]
    for source in dict.fromkeys(record["held_out"] for record in baseline):
        pair = [[r for r in records if r["held_out"] == source] for records in (baseline, whole)]
        uars = [" ".join(f"{uar:.1f}" for uar in values(side, "unseen UAR")) for side in pair]
        gap = difference(pair[1], pair[0], "unseen UAR")
        lines.append(f"| {source} | {uars[0]} | {uars[1]} | {gap.mean:+.1f} |")
    return [*lines, ""]


def _row(label: str, records: list[Record], baseline: list[Record]) -> str:
    means = {name: f"{values(records, name).mean():.1f}" for name in METRICS}
    gaps = {name: difference(records, baseline, name) for name in METRICS}
    cells = [
        label,
        str(len(records)),
        means["fit"],
        means["seen UAR"],
        means["unseen UAR"],
        _interval(gaps["seen UAR"]),
        _interval(gaps["unseen UAR"]),
        _interval(gaps["unseen WAR"]),
        means["worst source"],
        means["worst class"],
        means["corruption loss"],
        _interval(gaps["corrupted UAR"]),
    ]
    return "| " + " | ".join(cells) + " |"


def _versus(found: Records, rows: Mapping[str, Setting]) -> list[str]:
    """The whole method against each row that does only a part of what it does."""
    if WHOLE not in found:
        return []
    lines = [
        f"{rows[WHOLE].label}, less each of these rows, paired:",
        "",
        "| Less | " + " | ".join(f"Δ {metric}" for metric in _METRICS) + " |",
        "|---|" + "---:|" * len(_METRICS),
    ]
    for name in (name for name in PARTS if name in found):
        gaps = [difference(found[WHOLE], found[name], metric) for metric in _METRICS]
        lines.append("| " + " | ".join([rows[name].label, *map(_interval, gaps)]) + " |")
    return [*lines, ""]


def _interval(gap: Difference) -> str:
    if gap.runs < FEWEST:
        return f"{gap.mean:+.1f}"
    if gap.low == gap.high:
        return "–"
    text = f"{gap.mean:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}]"
    return f"**{text}**" if gap.low * gap.high > 0 else text


def _settings(found: Records, rows: Mapping[str, Setting], preset: Preset) -> list[str]:
    lines = ["## Hyper-parameters", "", f"Budget of every row: `{preset}`.", ""]
    lines += [f"- {rows[name].label}: {rows[name].describe()}" for name in found]
    return lines
