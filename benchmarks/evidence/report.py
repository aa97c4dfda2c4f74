"""The Markdown table, the plots and the list of the search, from the records alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from report.style import PALETTE, new_figure, styled

from benchmarks.evidence.corruptions import CORRUPTIONS, SEVERITIES
from benchmarks.evidence.presets import Preset
from benchmarks.evidence.records import Record
from benchmarks.evidence.settings import BASELINE, Setting
from benchmarks.evidence.summary import METRICS, Difference, difference, digest, values

Records = dict[str, list[Record]]

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
        "rows": digest(found, BASELINE),
        "search": {name: _validation(records) for name, records in searched.items()},
    }
    (folder / "heterogeneity.json").write_text(json.dumps(numbers, indent=1) + "\n")
    with styled():
        _differences(found, rows).savefig(folder / "heterogeneity_differences.png", dpi=110)
        _corruptions(found, rows).savefig(folder / "heterogeneity_corruptions.png", dpi=110)


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
        *(_row(rows[name].label, found[name], found[BASELINE]) for name in found),
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
    runs = {name: len(found.get(name, [])) for name in rows}
    if min(runs.values()) >= preset.seeds:
        return [f"{preset.seeds} runs in every row.", ""]
    short = ", ".join(f"{rows[name].label} ({n})" for name, n in runs.items() if n < preset.seeds)
    return [f"**Unfinished**: fewer than {preset.seeds} runs in {short}.", ""]


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
    if gap.low == gap.high:
        return "–"
    text = f"{gap.mean:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}]"
    return f"**{text}**" if gap.low * gap.high > 0 else text


def _settings(found: Records, rows: Mapping[str, Setting], preset: Preset) -> list[str]:
    lines = ["## Hyper-parameters", "", f"Budget of every row: `{preset}`.", ""]
    lines += [f"- {rows[name].label}: {rows[name].describe()}" for name in found]
    return lines


def _differences(found: Records, rows: Mapping[str, Setting]) -> Figure:
    """Paired differences from the baseline, every run a dot."""
    names = [name for name in found if name != BASELINE]
    metrics = ("seen UAR", "unseen UAR", "corrupted UAR")
    figure, axes = new_figure(11, 1.2 + 0.3 * len(names), 1, len(metrics), sharey=True)
    for axis, metric, colour in zip(axes, metrics, PALETTE[1:], strict=False):
        for place, name in enumerate(reversed(names)):
            gap = difference(found[name], found[BASELINE], metric)
            dots = [difference([record], found[BASELINE], metric).mean for record in found[name]]
            axis.plot(dots, [place] * len(dots), ".", color="#b8bec9", markersize=5)
            axis.plot([gap.low, gap.high], [place, place], color=colour, linewidth=2)
            axis.plot(gap.mean, place, "o", color=colour, markersize=6)
        axis.axvline(0, color="#444", linewidth=1)
        axis.set_title(f"Δ {metric}, points")
    axes[0].set_yticks(range(len(names)), [rows[name].label for name in reversed(names)])
    return figure


def _corruptions(found: Records, rows: Mapping[str, Setting]) -> Figure:
    """Mean UAR of every corruption over the severities, and the paired gain over the baseline."""
    names, kinds = list(found), list(CORRUPTIONS)
    uars = np.array([[_mean_uar(found[name], kind) for kind in kinds] for name in names])
    figure, axis = new_figure(10, 1.4 + 0.3 * len(names))
    gain = uars - uars[names.index(BASELINE)]
    reach = max(1.0, float(np.abs(gain).max()))
    image = axis.imshow(gain, cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto")
    for (row, column), uar in np.ndenumerate(uars):
        axis.text(column, row, f"{uar:.0f}", ha="center", va="center", fontsize=8)
    axis.set_xticks(range(len(kinds)), kinds, rotation=30, ha="right")
    axis.set_yticks(range(len(names)), [rows[name].label for name in names])
    axis.grid(False)
    axis.set_title(f"UAR under corruption, mean of severities {SEVERITIES[0]} to {SEVERITIES[-1]}")
    figure.colorbar(image, ax=axis, label="difference from the baseline, points")
    return figure


def _mean_uar(records: list[Record], kind: str) -> float:
    return float(np.mean([record["test"]["corruption"]["uar"][kind] for record in records]))
