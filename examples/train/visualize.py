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
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn.functional import interpolate

from examples.train import checkpoint
from examples.train.build import network
from examples.train.data.clips import Frames
from examples.train.data.expressions import CLASSES
from examples.train.data.synthetic import SyntheticClips
from examples.train.data.video import read_frames
from examples.train.options import parse, program
from examples.train.progress import track
from examples.train.report.gates import Array, Watched, watch
from examples.train.report.style import colour, drawable, named, styled
from hdf_modules import HDFError
from hdf_modules.files import whole

SIDE = 160  # of the frames as they are shown
LONGEST = 600  # frames of a film that are looked at, evenly spaced


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
    with styled():
        title, *names = drawable([f"{Path(options.video).name} ({trained})", *classes])
        still(paths[0], seen, large, tuple(names), title)
        moving(paths[1], seen, large, tuple(names))
    print(*paths, sep="\n")
    return paths


def load(path: Path | None) -> tuple[nn.Module, dict[str, Any], tuple[str, ...]]:
    """The model of a run's checkpoint with its options and class names; untrained without one.

    Raises:
        HDFError: if the checkpoint holds no attention, or weights of another model.
    """
    untrained: dict[str, Any] = {"options": vars(parse(["--output", "-"])), "classes": CLASSES}
    state = checkpoint.load(path, "options", "classes", "model") if path else untrained
    settings, classes = state["options"] | {"pretrained": False}, tuple(state["classes"])
    if settings["attention"] == "none":
        raise HDFError("checkpoint", "a run with attention", f"{path}, trained without")
    torch.manual_seed(0)
    model = network(argparse.Namespace(**settings), len(classes))
    if path:
        _fill(model, state["model"], path)
    return model.eval(), settings, classes


def _fill(model: nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        hint = "train again, or use the version of the library that it comes from"
        raise HDFError("checkpoint", "weights of this model", f"{path}: {first}", hint) from error


def _open(options: argparse.Namespace, size: int) -> Frames:
    kind, _, number = options.video.partition(":")
    if kind == "drawn" and number.isdigit():
        return SyntheticClips("test", int(number) + 1, size, ("studio",)).frames(int(number))
    return read_frames(
        Path(options.video),
        size,
        _evenly,
        region=options.region,
        watch=lambda frames, total: track(frames, "reading the video", total),
    )


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


def still(path: Path, seen: Watched, frames: Frames, classes: tuple[str, ...], title: str) -> None:
    """Frames with every stage's frequency gate over them, energy, temporal gates, prediction."""
    shown = np.linspace(0, len(seen.centres) - 1, min(8, len(seen.centres))).round().astype(int)
    stages = len(seen.frequency)
    figure = Figure(figsize=(11, 1.35 * (stages + 1) + 3.6))
    ratios = {"width_ratios": [1] * len(shown) + [1.1]}
    heights = [1.35 * (stages + 1), 3.6]
    top, below = figure.subfigures(2, 1, height_ratios=heights)  # type: ignore[misc]
    top.suptitle(title, fontsize=11)
    cells = top.subplots(stages + 1, len(shown) + 1, gridspec_kw=ratios, squeeze=False)
    for column, window in enumerate(shown):
        _column(cells[:, column], seen, frames, int(window))
    for stage in range(stages):
        cells[stage + 1, 0].set_ylabel(f"stage {stage + 1}", fontsize=8)
        _energy(cells[stage + 1, -1], seen.energy[stage].mean(0))
    cells[0, -1].set_axis_off()
    cells[min(1, stages), -1].set_title("DCT energy", fontsize=8)
    _over_time(below.subplots(2, 1, sharex=True), seen, classes)
    with whole(path) as file:
        _picture(figure, 100).quantize(255).save(file, "png", optimize=True)


def moving(
    path: Path, seen: Watched, frames: Frames, classes: tuple[str, ...], seconds: float = 6
) -> None:
    """The same with time as time: one picture per window, with a cursor in the curves."""
    stages = len(seen.frequency)
    figure = Figure(figsize=(1.5 * (stages + 1) + 0.4, 5.2), dpi=80)
    top, below = figure.subfigures(2, 1, height_ratios=[3, 2.6])  # type: ignore[misc]
    cells = top.subplots(2, stages + 1, squeeze=False)
    curves = below.subplots(2, 1, sharex=True)
    _over_time(curves, seen, classes)
    cursors = [axis.axvline(0, color="#333", lw=1) for axis in curves]
    pictures = []
    steps = track(enumerate(seen.centres), "drawing the animation", len(seen.centres))
    for window, centre in steps:
        _moment(cells, seen, frames, window)
        for cursor in cursors:
            cursor.set_xdata([centre, centre])
        pictures.append(_picture(figure))
    palette = pictures[len(pictures) // 2].quantize(96)
    small = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    each = max(20, round(1000 * seconds / len(small)))
    more = {"append_images": small[1:], "duration": each, "loop": 0, "optimize": True}
    with whole(path) as file:
        small[0].save(file, "gif", save_all=True, **more)


def _picture(figure: Figure, dpi: int = 80) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return Image.open(buffer).convert("RGB")


def _column(cells: Any, seen: Watched, frames: Frames, window: int) -> None:
    """One moment of the still: the frame, and each stage's gate over it."""
    frame = frames[seen.centres[window]]
    cells[0].imshow(frame)
    cells[0].set_title(f"frame {seen.centres[window]}", fontsize=8, loc="center")
    for stage, axis in enumerate(cells[1:]):
        _heat(axis, frame, seen.frequency[stage], window)
    for axis in cells:
        _bare(axis)


def _moment(cells: Any, seen: Watched, frames: Frames, window: int) -> None:
    """One picture of the animation: the frame, each stage's gate over it, and its energy."""
    frame = frames[seen.centres[window]]
    for axis in cells.flat:
        axis.clear()
        _bare(axis)
    cells[0, 0].imshow(frame)
    cells[0, 0].set_title(f"frame {seen.centres[window]}", fontsize=8)
    cells[1, 0].set_axis_off()
    cells[1, 0].text(1, 0.5, "DCT energy", fontsize=8, ha="right", va="center")
    for stage, maps in enumerate(seen.frequency):
        _heat(cells[0, stage + 1], frame, maps, window)
        cells[0, stage + 1].set_title(f"stage {stage + 1}", fontsize=8)
        _energy(cells[1, stage + 1], seen.energy[stage][window])


def _heat(axis: Any, frame: Any, maps: Array, window: int) -> None:
    """A frequency gate over the grey frame; the colours span the stage's range over the video."""
    large = interpolate(
        torch.from_numpy(maps[window])[None, None], frame.shape[:2], mode="bilinear"
    )
    axis.imshow(frame.mean(-1), cmap="gray", vmin=0, vmax=255)
    axis.imshow(large[0, 0].numpy(), cmap="magma", alpha=0.6, vmin=maps.min(), vmax=maps.max())


def _energy(axis: Any, energy: Array) -> None:
    """Energy of the local frequencies, from constant (top left) to fine, on a log scale."""
    axis.imshow(np.log10(energy + 1e-12), cmap="viridis")
    _bare(axis)


def _bare(axis: Any) -> None:
    axis.set(xticks=[], yticks=[])
    axis.grid(visible=False)
    for side in axis.spines.values():
        side.set_visible(False)


def _over_time(axes: Any, seen: Watched, classes: tuple[str, ...]) -> None:
    for stage, curve in enumerate(seen.temporal):
        axes[0].plot(curve, color=colour(stage), lw=1.5, label=f"stage {stage + 1}")
    axes[0].set_ylabel("temporal gate,\nchange", fontsize=8)
    for i, name in enumerate(classes):
        curve, label = seen.probabilities[:, i], named(name)
        axes[1].plot(seen.centres, curve, color=colour(i), lw=1.8, label=label)
    axes[1].set_ylabel("prediction", fontsize=8)
    axes[1].set(ylim=(-0.02, 1.02), xlim=(0, seen.temporal.shape[1] - 1))
    axes[1].set_xlabel("frame", fontsize=8)
    for axis in axes:
        axis.tick_params(labelsize=7)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


if __name__ == "__main__":
    program(main)
