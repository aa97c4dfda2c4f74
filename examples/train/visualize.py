"""See inside: what attention does to a video and what the model says, over time.

    python -m examples.train.visualize film.mp4 --checkpoint runs/demo/best.pt
    python -m examples.train.visualize film.mp4 --region 280 0 640 360 --output views
    python -m examples.train.visualize drawn:3 --checkpoint runs/demo/best.pt

Writes ``gates.png`` and ``gates.gif``: the temporal gate of every frame, the frequency gate of
every stage as a heat map over the frames, the DCT energy that it reads, and the prediction.
Without a checkpoint the network is untrained: its gates are those of the first step.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from examples.train import checkpoint, models
from examples.train.data.clips import Frames
from examples.train.data.expressions import CLASSES
from examples.train.data.synthetic import SyntheticClips
from examples.train.data.video import read_frames
from examples.train.report.views import moving, still
from examples.train.report.watching import watch
from hdf_modules import HDFError, with_features

SIDE = 160  # of the frames as they are shown
LONGEST = 600  # frames of a film that are looked at, evenly spaced
_UNTRAINED: dict[str, Any] = {
    "model": "small",
    "size": 40,
    "frames": 16,
    "attention": True,
    "consistency": "time",
    "perturbation": "learned",
}


def main(arguments: list[str] | None = None) -> tuple[Path, Path]:
    """Run the command line; returns the paths of the still and of the animation."""
    options = _parser().parse_args(arguments)
    model, settings, classes = load(options.checkpoint)
    span = options.span or 2 * settings["frames"]
    small, large = (_open(options, size) for size in (settings["size"], SIDE))
    seen = watch(model, small, settings["frames"], span, options.windows)
    options.output.mkdir(parents=True, exist_ok=True)
    paths = options.output / "gates.png", options.output / "gates.gif"
    trained = f"{settings['model']}, {'trained' if options.checkpoint else 'untrained'}"
    still(paths[0], seen, large, classes, f"{Path(options.video).name} ({trained})")
    moving(paths[1], seen, large, classes)
    return paths


def load(path: Path | None) -> tuple[nn.Module, dict[str, Any], tuple[str, ...]]:
    """The model of a run's checkpoint with its options and class names; untrained without one.

    Raises:
        HDFError: if the checkpoint holds no attention, or weights of another model.
    """
    untrained: dict[str, Any] = {"options": _UNTRAINED, "classes": CLASSES}
    state = checkpoint.load(path) if path else untrained
    settings, classes = state["options"], tuple(state["classes"])
    torch.manual_seed(0)
    model = models.build(settings["model"], len(classes), settings["frames"])
    if not settings["attention"]:
        raise HDFError("checkpoint", "a run with attention", f"{path} of a run with --no-attention")
    perturbation = None if settings["perturbation"] == "none" else settings["perturbation"]
    models.add_attention(
        model, settings["frames"], consistency=settings["consistency"], perturbation=perturbation
    )
    model = with_features(model)
    if path:
        _fill(model, state["model"], path)
    return model.eval(), settings, classes


def _fill(model: nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        hint = "it may come from another version of the library"
        raise HDFError("checkpoint", "weights of this model", f"{path}: {first}", hint) from error


def _open(options: argparse.Namespace, size: int) -> Frames:
    kind, _, number = options.video.partition(":")
    if kind == "drawn" and number.isdigit():
        return SyntheticClips("test", int(number) + 1, size, ("studio",)).frames(int(number))
    return read_frames(Path(options.video), size, _evenly, region=options.region)


def _evenly(available: int) -> NDArray[np.int64]:
    return np.linspace(0, available - 1, min(available, LONGEST)).round().astype(np.int64)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("video", help="video, folder of frames, or drawn:N for a built-in test clip")
    add("--checkpoint", type=Path, help="best.pt of a run")
    add("--output", type=Path, default=Path("views"), help="folder to write to")
    add(
        "--region",
        type=int,
        nargs=4,
        metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"),
        help="pixels of the frame that hold the face; default the central square",
    )
    add("--span", type=int, help="frames that one prediction covers; default twice the model's")
    add("--windows", type=int, default=48, help="predictions over the video")
    return parser


if __name__ == "__main__":
    try:
        print(*main(), sep="\n")
    except HDFError as error:
        sys.exit(f"examples.train.visualize: error: {error}")
