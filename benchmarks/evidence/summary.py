"""From records to the figures of the table: means, paired differences, bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.evidence.records import Record
from benchmarks.evidence.settings import BASELINE

RESAMPLES = 10_000
FEWEST = 5  # runs that an interval is given for: a bootstrap of two says nothing


class Difference(NamedTuple):
    """Mean of paired differences, with a 95% interval, over ``runs`` pairs."""

    mean: float
    low: float
    high: float
    runs: int


def _worst_source(record: Record) -> float:
    tests = (record["test"]["seen"], record["test"]["unseen"])
    return min(uar for test in tests for uar in test["sources"].values())


def _worst_people(record: Record) -> float:
    return min(record["test"]["unseen"]["cohorts"].values())


def _take_off(record: Record) -> float:
    """Epochs until half the training clips were right; one more than there were, if never."""
    right = [epoch["war"] >= 50 for epoch in record["history"]]
    return 1 + (right.index(True) if True in right else len(right))


METRICS: dict[str, Callable[[Record], float]] = {
    "fit": lambda r: r["fit"],
    "seen WAR": lambda r: r["test"]["seen"]["war"],
    "seen UAR": lambda r: r["test"]["seen"]["uar"],
    "unseen WAR": lambda r: r["test"]["unseen"]["war"],
    "unseen UAR": lambda r: r["test"]["unseen"]["uar"],
    "worst source": _worst_source,
    "worst class": lambda r: min(r["test"]["unseen"]["recall"].values()),
}
OF_CORRUPTION: dict[str, Callable[[Record], float]] = {
    "corrupted UAR": lambda r: r["test"]["corruption"]["mean"],
    "corruption loss": lambda r: r["test"]["corruption"]["loss"],
}
OF_PEOPLE: dict[str, Callable[[Record], float]] = {"worst people": _worst_people}
# Not of drawn faces, where fewer numbers say enough.
OF_REAL: dict[str, Callable[[Record], float]] = {"epochs to 50%": _take_off}
EVERY = METRICS | OF_CORRUPTION | OF_PEOPLE | OF_REAL


Run = dict[str, Any]
"""A run's metrics, and the seed and the source left out that pair it with another."""


def measured(record: Record) -> Run:
    run = {"seed": record["seed"], "held_out": record["held_out"]}
    wanted = dict(METRICS)
    if "corruption" in record["test"]:
        wanted |= OF_CORRUPTION
    if record["test"]["unseen"].get("cohorts"):
        wanted |= OF_PEOPLE
    if record.get("preset", {}).get("data", "drawn") != "drawn":
        wanted |= OF_REAL
    return run | {name: metric(record) for name, metric in wanted.items()}


def values(runs: list[Run], metric: str) -> NDArray[np.float64]:
    """One metric of every run."""
    return np.array([run[metric] for run in runs])


def difference(runs: list[Run], baseline: list[Run], metric: str) -> Difference:
    """Compare runs with the baseline's of the same seed and source left out.

    The interval is the percentile bootstrap's over the pairs. It covers the training seed and
    the choice of the source, not the choice of the test clips, which all runs share.
    """
    pairs = {(run["seed"], run["held_out"]): run[metric] for run in baseline}
    mine = [(run[metric], pairs.get((run["seed"], run["held_out"]))) for run in runs]
    gaps = np.array([value - other for value, other in mine if other is not None])
    if not len(gaps):
        return Difference(np.nan, np.nan, np.nan, 0)
    drawn = np.random.default_rng(0).choice(gaps, (RESAMPLES, len(gaps))).mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Difference(float(gaps.mean()), float(low), float(high), len(gaps))


def digest(found: dict[str, list[Record]]) -> Record:
    """Per row and metric the value of every run, the mean, the difference from the baseline."""
    every = {name: [measured(record) for record in records] for name, records in found.items()}
    rows: Record = {}
    for name, runs in every.items():
        named = [metric for metric in EVERY if metric in runs[0]]
        gaps = {metric: difference(runs, every[BASELINE], metric) for metric in named}
        rows[name] = {
            "runs": [{"seed": run["seed"], "unseen": run["held_out"]} for run in runs],
            "parameters": found[name][0]["parameters"],
            "setting": found[name][0]["setting"],
            "metrics": {
                metric: {
                    "values": values(runs, metric).round(2).tolist(),
                    "mean": round(float(values(runs, metric).mean()), 3),
                    "difference": {key: round(x, 3) for key, x in gap._asdict().items()},
                }
                for metric, gap in gaps.items()
            },
        }
    return rows


def restored(row: Record) -> list[Run]:
    """The runs of a row of the digest; records have as many decimals as it."""
    return [
        {"seed": run["seed"], "held_out": run["unseen"]}
        | {name: metric["values"][place] for name, metric in row["metrics"].items()}
        for place, run in enumerate(row["runs"])
    ]
