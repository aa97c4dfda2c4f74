"""The Markdown table, the plots and the list of the search, from the records alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from report.style import styled

from benchmarks.evidence import figures
from benchmarks.evidence.presets import Preset
from benchmarks.evidence.records import Record
from benchmarks.evidence.settings import Setting
from benchmarks.evidence.summary import METRICS, Difference, difference, digest, values

Records = dict[str, list[Record]]
FEWEST = 5  # runs that an interval is given for: a bootstrap of two says nothing

_HEAD = (
    "| Row | Runs | Seen UAR | Unseen UAR | Δ seen UAR | Δ unseen UAR | Unseen WAR | Worst source "
    "| Worst class | Corruption loss | Δ corrupted UAR |"
)


def write(
    found: Records,
    searched: Records,
    settings: tuple[Mapping[str, Setting], Mapping[str, Setting]],
    preset: Preset,
    folder: Path,
) -> None:
    """Write table, figures and all numbers; rows without a record are left out.

    Args:
        found: records of the rows.
        searched: records of the search.
        settings: the rows, and the candidates of the search.
        preset: the budget.
        folder: where to.
    """
    rows, candidates = settings
    found = {name: found[name] for name in rows if name in found}
    folder.mkdir(parents=True, exist_ok=True)
    text = table(found, rows, preset) + _search_table(searched, candidates)
    (folder / "heterogeneity.md").write_text(text)
    numbers = {
        "preset": asdict(preset),
        "environments": environments(found),
        "rows": digest(found, {name: rows[name].against for name in found}),
        "search": {name: _validation(records) for name, records in searched.items()},
    }
    (folder / "heterogeneity.json").write_text(json.dumps(numbers, indent=1) + "\n")
    with styled():
        figures.differences(found, rows).savefig(folder / "heterogeneity_differences.png", dpi=80)
        figures.corruptions(found, rows).savefig(folder / "heterogeneity_corruptions.png", dpi=80)


def table(found: Records, rows: Mapping[str, Setting], preset: Preset) -> str:
    """The whole ablation in Markdown."""
    lines = [
        "# Heterogeneity: the ablation",
        "",
        "Means over the runs of a row, each with its own seed and source left out; in percent. Δ: "
        "paired difference from the baseline with its 95% bootstrap interval over the runs; in "
        "bold where the interval is clear of zero. What is measured, and how to run it: "
        "`python benchmarks/heterogeneity.py --help`.",
        "",
        *_unfinished(found, rows, preset),
        _HEAD,
        "|---|" + "---:|" * (_HEAD.count("|") - 2),
        *(_row(rows[name].label, found[name], found[rows[name].against]) for name in found),
        "",
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


def print_search(found: Records) -> None:
    """Print the candidates, best first, by mean validation UAR of seen and unseen styles."""
    print(f"{'candidate':42} runs   mean   seen unseen")
    for name, (runs, mean, seen, unseen) in _ranked(found).items():
        print(f"{name:42} {runs:4} {mean:6.1f} {seen:6.1f} {unseen:6.1f}")


def _unfinished(found: Records, rows: Mapping[str, Setting], preset: Preset) -> list[str]:
    """Say how many runs there are: of every row, or of which rows fewer than planned."""
    short: dict[int, list[str]] = {}
    for name, setting in rows.items():
        short.setdefault(len(found.get(name, [])), []).append(setting.label)
    short = {runs: labels for runs, labels in sorted(short.items()) if runs < preset.seeds}
    if not short:
        return [f"{preset.seeds} runs in every row.", ""]
    parts = "; ".join(f"{runs} of {', '.join(labels)}" for runs, labels in short.items())
    return [
        f"**Unfinished**: {preset.seeds} runs are planned for every row; there are {parts}.",
        "",
    ]


def _search_table(searched: Records, candidates: Mapping[str, Setting]) -> str:
    if not searched:
        return ""
    lines = [
        "",
        "## Search",
        "",
        "UAR on validation clips: of seen sources, and of two styles that are neither trained nor "
        "tested on. Best mean first.",
        "",
        "| Candidate | Runs | Mean | Seen | Unseen |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, (runs, *uars) in _ranked(searched).items():
        cells = [candidates[name].label, str(runs), *(f"{uar:.1f}" for uar in uars)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _ranked(found: Records) -> dict[str, tuple[int, float, float, float]]:
    """Runs, mean, seen and unseen validation UAR of every candidate, best mean first."""
    scored = {name: _validation(records) for name, records in found.items()}
    best_first = sorted(scored, key=lambda name: -scored[name]["mean"])
    return {
        name: (
            len(found[name]),
            scored[name]["mean"],
            scored[name]["seen"],
            scored[name]["unseen"],
        )
        for name in best_first
    }


def _validation(records: list[Record]) -> dict[str, float]:
    seen, unseen = (
        float(np.mean([r["validation"][part]["uar"] for r in records]))
        for part in ("seen", "unseen")
    )
    means = {"mean": (seen + unseen) / 2, "seen": seen, "unseen": unseen}
    return {name: round(mean, 2) for name, mean in means.items()}


def _row(label: str, records: list[Record], baseline: list[Record]) -> str:
    means = {name: f"{values(records, name).mean():.1f}" for name in METRICS}
    gaps = {name: difference(records, baseline, name) for name in METRICS}
    cells = [
        label,
        str(len(records)),
        means["seen UAR"],
        means["unseen UAR"],
        _interval(gaps["seen UAR"]),
        _interval(gaps["unseen UAR"]),
        means["unseen WAR"],
        means["worst source"],
        means["worst class"],
        means["corruption loss"],
        _interval(gaps["corrupted UAR"]),
    ]
    return "| " + " | ".join(cells) + " |"


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
