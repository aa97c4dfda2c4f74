"""Compare runs on one page: paired curves, tables by class and by source.

python -m examples.train.compare runs/plain runs/full --output comparison.html
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from examples.train.options import program
from examples.train.report.page import render
from examples.train.report.style import colour, inline, named, new_figure, styled
from hdf_modules import HDFError

# Options that say where a run lives, not what it is.
_PLACE = ("output", "resume", "overwrite", "stop_after", "device", "workers", "cache")


def main(arguments: list[str] | None = None) -> Path:
    """Run the command line; returns the page's path."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs; the first is the base")
    parser.add_argument(
        "--output", type=Path, default=Path("comparison.html"), help="page to write"
    )
    options = parser.parse_args(arguments)
    runs = load_runs(options.runs)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_comparison(options.output, runs)
    print(options.output)
    return options.output


def load_runs(folders: list[Path]) -> dict[str, dict[str, Any]]:
    """The records of runs that were tested on the same clips, by the shortest distinct name.

    Raises:
        HDFError: for fewer than two runs, a folder without a record, or runs on other test clips.
    """
    if len(folders) < 2:
        raise HDFError("runs", "at least two runs", len(folders), "name another folder")
    records = [_load(folder) for folder in folders]
    first = records[0]["test"]
    for folder, record in zip(folders, records, strict=True):
        test = record["test"]
        if (test["classes"], test["labels"]) != (first["classes"], first["labels"]):
            found = f"others in {folder} ({len(test['labels'])} clips)"
            raise HDFError("runs", f"the test clips of {folders[0]}", found)
    return dict(zip(_names(folders), records, strict=True))


def write_comparison(path: Path, runs: dict[str, dict[str, Any]]) -> None:
    """Write one HTML file that needs no other."""
    with styled():
        images = {"curves": _curves(runs), "recall": _recall(runs)}
    first = next(iter(runs.values()))["test"]
    render(
        path,
        "compare.html.j2",
        runs=runs,
        images=images,
        colours=[colour(i) for i in range(len(runs))],
        classes=[(name, first["labels"].count(i)) for i, name in enumerate(first["classes"])],
        groups=sorted({name for run in runs.values() for name in run["test"]["groups"]}),
        options=differing_options(runs),
        paired=[paired(first, run["test"]) for run in runs.values()],
    )


def differing_options(runs: dict[str, dict[str, Any]]) -> dict[str, list[Any]]:
    """Options that are not the same in all runs, each with every run's value."""
    names = sorted({name for run in runs.values() for name in run["options"]} - set(_PLACE))
    values = {name: [run["options"].get(name) for run in runs.values()] for name in names}
    return {name: row for name, row in values.items() if any(v != row[0] for v in row)}


def paired(base: dict[str, Any], other: dict[str, Any], draws: int = 2000) -> dict[str, Any]:
    """Difference in WAR and UAR on the same clips, with 95% bootstrap intervals over the clips.

    Also how many clips only one of the two recognised.
    """
    labels = np.array(base["labels"])
    right = np.array([run["predicted"] for run in (base, other)]) == labels
    draw = np.random.default_rng(0).integers(len(labels), size=(draws, len(labels)))
    picked, gain = labels[draw], (right[1].astype(float) - right[0])[draw]
    recalls = [_mean_where(picked == label, gain) for label in np.unique(labels)]
    uar = 100 * np.nanmean(recalls, axis=0)
    return {
        "war": other["war"] - base["war"],
        "uar": other["uar"] - base["uar"],
        "war_interval": np.percentile(100 * gain.mean(1), (2.5, 97.5)).tolist(),
        "uar_interval": np.percentile(uar, (2.5, 97.5)).tolist(),
        "only_other": int((right[1] & ~right[0]).sum()),
        "only_base": int((right[0] & ~right[1]).sum()),
    }


def _mean_where(chosen: Any, values: Any) -> Any:
    """Mean of each row's chosen values; NaN where a draw has none."""
    count = chosen.sum(1)
    return np.where(count > 0, (values * chosen).sum(1) / np.maximum(count, 1), np.nan)


def _load(folder: Path) -> dict[str, Any]:
    file = folder / "run.json"
    if not file.is_file():
        hint = "finish the training, which writes it at its end"
        raise HDFError("runs", "folders of finished runs", f"no file {file}", hint)
    return json.loads(file.read_text())


def _names(folders: list[Path]) -> list[str]:
    """As many trailing parts of the paths as tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise HDFError("runs", "different folders", ", ".join(map(str, folders)))


def _curves(runs: dict[str, dict[str, Any]]) -> str:
    """Validation (solid) and training (dashed) curves; a dot at the chosen epoch."""
    figure, axes = new_figure(11, 3.4, 1, 3)
    titles = {"loss": "Cross-entropy", "war": "WAR, %", "uar": "UAR, %"}
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        for i, (name, run) in enumerate(runs.items()):
            train, val = ([epoch[p][key] for epoch in run["epochs"]] for p in ("train", "val"))
            x, best = np.arange(1, len(val) + 1), run["best_epoch"]
            axis.plot(x, train, "--", color=colour(i), lw=1, alpha=0.6)
            axis.plot(x, val, color=colour(i), lw=1.8, label=named(name))
            axis.plot(x[best], val[best], "o", color=colour(i), ms=6)
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9
    )
    return inline(figure)


def _recall(runs: dict[str, dict[str, Any]]) -> str:
    """Recall of every class, a bar per run."""
    classes = next(iter(runs.values()))["test"]["classes"]
    figure, axis = new_figure(11, 3)
    width = 0.8 / len(runs)
    for i, (name, run) in enumerate(runs.items()):
        values = [np.nan if value is None else value for value in run["test"]["recall"]]
        x = np.arange(len(classes)) + (i - (len(runs) - 1) / 2) * width
        axis.bar(x, values, width * 0.92, color=colour(i), label=named(name))
    axis.set_xticks(range(len(classes)), classes)
    axis.set(title="Recall, %", ylim=(0, 100))
    return inline(figure)


if __name__ == "__main__":
    program(main)
