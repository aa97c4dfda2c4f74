"""From records to the figures of the table: means, paired differences, bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.evidence.records import Record

RESAMPLES = 10_000


class Difference(NamedTuple):
    """Mean of paired differences, with a 95% interval, over ``runs`` pairs."""

    mean: float
    low: float
    high: float
    runs: int


def _worst_source(record: Record) -> float:
    tests = (record["test"]["seen"], record["test"]["unseen"])
    return min(uar for test in tests for uar in test["sources"].values())


METRICS: dict[str, Callable[[Record], float]] = {
    "fit": lambda r: r["fit"],
    "seen WAR": lambda r: r["test"]["seen"]["war"],
    "seen UAR": lambda r: r["test"]["seen"]["uar"],
    "unseen WAR": lambda r: r["test"]["unseen"]["war"],
    "unseen UAR": lambda r: r["test"]["unseen"]["uar"],
    "worst source": _worst_source,
    "worst class": lambda r: min(r["test"]["unseen"]["recall"].values()),
    "corrupted UAR": lambda r: r["test"]["corruption"]["mean"],
    "corruption loss": lambda r: r["test"]["corruption"]["loss"],
}


def values(records: list[Record], metric: str) -> NDArray[np.float64]:
    """One metric of every run."""
    return np.array([METRICS[metric](record) for record in records])


def difference(records: list[Record], baseline: list[Record], metric: str) -> Difference:
    """Compare runs with the baseline's of the same seed and source left out.

    The interval is the percentile bootstrap's over the pairs. It covers the training seed and
    the choice of the source, not the choice of the test clips, which all runs share.
    """
    pairs = {(r["seed"], r["held_out"]): METRICS[metric](r) for r in baseline}
    mine = [(METRICS[metric](r), pairs.get((r["seed"], r["held_out"]))) for r in records]
    gaps = np.array([value - other for value, other in mine if other is not None])
    if not len(gaps):
        return Difference(np.nan, np.nan, np.nan, 0)
    drawn = np.random.default_rng(0).choice(gaps, (RESAMPLES, len(gaps))).mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Difference(float(gaps.mean()), float(low), float(high), len(gaps))


def digest(found: dict[str, list[Record]], against: Mapping[str, str]) -> Record:
    """Per row and metric the value of every run, the mean, the difference from another row."""
    rows: Record = {}
    for name, records in found.items():
        rows[name] = {
            "against": against[name],
            "runs": [{"seed": r["seed"], "unseen": r["held_out"]} for r in records],
            "parameters": records[0]["parameters"],
            "setting": records[0]["setting"],
            "metrics": {
                metric: {
                    "values": values(records, metric).round(2).tolist(),
                    "mean": round(float(values(records, metric).mean()), 3),
                    "difference": _rounded(difference(records, found[against[name]], metric)),
                }
                for metric in METRICS
            },
        }
    return rows


def _rounded(gap: Difference) -> Record:
    return {name: round(value, 3) for name, value in gap._asdict().items()}
