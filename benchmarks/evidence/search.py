"""The candidates of the search, by what they gain over the baseline on validation clips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from benchmarks import markdown
from benchmarks.evidence.records import Record
from benchmarks.evidence.settings import SEARCH

Records = dict[str, list[Record]]


class Candidate(NamedTuple):
    """Validation UAR in percent: means over ``runs``, and the paired gain over the baseline."""

    runs: int
    seen: float
    unseen: float
    gain_seen: float
    gain_unseen: float

    @property
    def gain(self) -> float:
        """What the candidates are ranked by."""
        return (self.gain_seen + self.gain_unseen) / 2


def ranked(found: Records) -> dict[str, Candidate]:
    """Measure all candidates, best gain first; the first one found is the baseline."""
    baseline = next(iter(found.values()), [])
    measured = {name: _measure(records, baseline) for name, records in found.items()}
    return dict(sorted(measured.items(), key=lambda item: -item[1].gain))


def show(found: Records) -> None:
    """Print the candidates."""
    print(f"{'candidate':64} runs   seen unseen  Δseen Δunseen")
    for name, (runs, seen, unseen, gain_seen, gain_unseen) in ranked(found).items():
        uars = f"{seen:6.1f} {unseen:6.1f} {gain_seen:+6.1f} {gain_unseen:+8.1f}"
        print(f"{name:64} {runs:4} {uars}")


def table(candidates: Mapping[str, Candidate]) -> list[str]:
    """The search in Markdown; nothing without candidates."""
    if not candidates:
        return []
    head = ["Candidate", "Runs", "Seen", "Unseen", "Δ seen", "Δ unseen"]
    rows = [
        [
            SEARCH[name].label,
            str(runs),
            f"{seen:.1f}",
            f"{unseen:.1f}",
            *(f"{g:+.1f}" for g in gains),
        ]
        for name, (runs, seen, unseen, *gains) in candidates.items()
    ]
    return [
        "",
        "## Search",
        "",
        "UAR on validation clips: of seen sources, and of two styles that are neither trained nor "
        "tested on. Δ: mean paired difference from the first candidate with as many runs of the "
        "same seeds. Best mean of both Δ first.",
        "",
        *markdown.table(head, rows),
    ]


def _measure(records: list[Record], baseline: list[Record]) -> Candidate:
    parts = ("seen", "unseen")
    uars = {part: [r["validation"][part]["uar"] for r in records] for part in parts}
    pairs = {r["seed"]: r["validation"] for r in baseline}
    gains = {
        part: [
            r["validation"][part]["uar"] - pairs[r["seed"]][part]["uar"]
            for r in records
            if r["seed"] in pairs
        ]
        for part in parts
    }
    means = [float(np.mean(values)) for values in (*uars.values(), *gains.values())]
    return Candidate(len(records), *(round(mean, 2) for mean in means))
