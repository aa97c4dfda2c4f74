"""The paper's recipe on the paper's data: X3D-S with attention, the loss and SAM, fold by fold.

    python -m examples.train.recipes.hdf_x3d_dfew --data dfew --root DFEW --output runs/dfew
    python -m examples.train.recipes.hdf_x3d_dfew --data ferv39k --root FERV39k --output runs/f
    python -m examples.train.recipes.hdf_x3d_dfew --data mafw --root MAFW --output runs/mafw

16 frames of 112² pixels, AdamW under SAM of radius 0.05, DSM with α 10 and β 0.1. What the paper
does not say (learning rate, batch, epochs) is this project's choice. Every option of a training may
follow and wins. Each fold has its own folder with checkpoints and report; started again, the
command continues where it was cut off. The epoch is chosen on a tenth of the training clips, never
on the test fold, so figures are lower than those of papers that report their best test epoch.
Under torchrun give one fold at a time with --folds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

from examples.train.run import main as train
from hdf_modules import HDFError

RECIPE = """--model x3d_s --frames 16 --size 112 --epochs 60 --batch-size 32 --lr 1e-3
    --weight-decay 0.05 --sam --rho 0.05 --attention --contrastive --alpha 10 --beta 0.1"""
FOLDS = {"dfew": 5, "mafw": 5, "cremad": 5, "ferv39k": 1}


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Train and test every fold; returns mean and deviation of WAR and UAR."""
    options, more = _parser().parse_known_args(arguments)
    folds = options.folds or range(1, FOLDS[options.data] + 1)
    scores = {fold: _run(options, fold, more) for fold in folds}
    summary = {name: _spread([found[name] for found in scores.values()]) for name in ("war", "uar")}
    record = {"data": options.data, "folds": scores, "summary": summary}
    (options.output / "folds.json").write_text(json.dumps(record, indent=1))
    _show(scores, summary)
    return summary


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", choices=sorted(FOLDS), default="dfew", help="layout of the data")
    add("--root", type=Path, required=True, help="folder of the data, as released")
    add("--output", type=Path, required=True, help="folder of the folds' folders")
    add("--folds", type=int, nargs="+", help="test folds, all by default")
    return parser


def _run(options: argparse.Namespace, fold: int, more: list[str]) -> dict[str, float]:
    """One fold, or what is left of it."""
    output = options.output / f"fold{fold}"
    arguments = [*RECIPE.split(), "--data", options.data, "--root", str(options.root)]
    arguments += ["--fold", str(fold), "--output", str(output), *more]
    if (output / "last.pt").exists():
        arguments.append("--resume")
    train(arguments)
    test = json.loads((output / "run.json").read_text())["test"]
    return {name: test[name] for name in ("war", "uar")}


def _spread(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation over folds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": deviation}


def _show(scores: dict[int, dict[str, float]], summary: dict[str, dict[str, float]]) -> None:
    for fold, found in scores.items():
        print(f"fold {fold}  WAR {found['war']:.2f}  UAR {found['uar']:.2f}")
    shown = (f"{k.upper()} {v['mean']:.2f} ± {v['std']:.2f}" for k, v in summary.items())
    print("mean    " + "  ".join(shown))


if __name__ == "__main__":
    try:
        main()
    except HDFError as error:
        sys.exit(f"hdf_x3d_dfew: error: {error}")
