"""A run's values and figures, laid out by the template."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import Tensor, nn

from examples.train.checkpoint import write_text
from examples.train.data.clips import ClipDataset, sample_frames, to_tensor
from examples.train.metrics import Predictions
from examples.train.options import command
from examples.train.progress import track
from examples.train.report import figures
from examples.train.report.gates import catch_gates
from examples.train.report.style import styled

READING = Path(__file__).parents[3] / "benchmarks/evidence/results/evidence_cpu_reading.md"


def write_report(
    path: Path,
    run: dict[str, Any],
    found: Predictions,
    test: ClipDataset,
    model: nn.Module,
) -> None:
    """Write one HTML file that needs no other.

    Args:
        path: of the page.
        run: what ``run.json`` holds.
        found: predictions on the test clips.
        test: the test clips.
        model: with the best epoch's weights.
    """
    classes = run["test"]["classes"]
    draw: dict[str, Callable[[], Any]] = {
        "curves": lambda: figures.curves(run["epochs"], run["best_epoch"]),
        "confusion": lambda: figures.confusion_matrix(run["test"]["confusion"], classes),
        "calibration": lambda: figures.reliability(found),
        "features": lambda: figures.feature_map(found, classes, test.source.groups),
        "balance": lambda: figures.balance(run["steps"]),
        "weights": lambda: figures.robust_weights(found, run["steps"]),
        "gates": lambda: _gates(found, test, model, classes),
    }
    with styled():
        images = {name: draw[name]() for name in track(draw, "writing the report", len(draw))}
    images["features"], method = images["features"]
    images["calibration"], error = images["calibration"]
    values = {"method": method, "calibration_error": error, "reading": _from(path, READING)}
    typed = command(run["options"])
    render(path, "run.html.j2", run=run, images=images, command=typed, **values)


def render(path: Path, template: str, **values: Any) -> None:
    """Fill a template of this folder; an undefined name is an error, values are escaped."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    write_text(path, environment.get_template(template).render(**values))


def _from(page: Path, file: Path) -> str:
    """The file as a link from the page; a page that was moved still says its name."""
    return quote(os.path.relpath(file, page.resolve().parent).replace(os.sep, "/"))


def _gates(
    found: Predictions, test: ClipDataset, model: nn.Module, classes: list[str]
) -> list[tuple[str, str]]:
    """Gates on the most confident correct clip of each class, each with its caption."""
    device = next(model.parameters()).device
    images = []
    for label in range(len(classes)):
        item = _best(found, label)
        if item is None:
            continue
        frames = test.frames(item, lambda available: sample_frames(available, test.num_frames))
        logits, gates = catch_gates(model, to_tensor(frames)[None].to(device))
        if not gates:
            return []
        sure = 100 * float(torch.softmax(logits[0].float(), 0)[label])
        name = test.clips[test.indices[item]].name
        caption = f"{classes[label]}, predicted at {sure:.0f}% ({name})"
        images.append((caption, figures.clip_gates(frames, gates)))
    return images


def _best(found: Predictions, label: int) -> int | None:
    mine: Tensor = (found.labels == label) & (found.predicted == label)
    if not mine.any():
        return None
    sure = found.logits.softmax(1)[:, label]
    return int(torch.where(mine, sure, -torch.inf).argmax())
