r"""Write the clips of real people in motion as video files, with lists that readers know.

    python -m examples.train.data.build_dynamics --faces examples/assets/london --output data/faces
    python -m examples.train --data list --root data/faces --output runs/grey --size 48 \
        --lists data/faces/without_grey.txt data/faces/only_grey.txt \
        --classes neutral smile onset offset flash

Real photographs of real people, interpolated motion, simulated sources: everyone is filmed by one
of four, each with its acquisition and its container. ``without_SOURCE.txt`` lists the clips of the
other sources, to train on, and ``only_SOURCE.txt`` those of the source left out, to test on; no
person is in both. ``people.csv`` says of everyone age, gender, ethnicity, source, and split.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np

from examples.train.data.clips import Frames
from examples.train.data.dynamics import (
    CLASSES,
    LONDON,
    DynamicsClips,
    part_of,
    sources_of,
)
from examples.train.options import program
from examples.train.progress import track

RATE = 25
# Container and codec of each source, as recordings of several origins have them.
_FORMATS = {
    "plain": (".mp4", "libx264", {"crf": "18"}),
    "tinted": (".avi", "mpeg4", {"qscale": "3"}),
    "soft": (".mkv", "libx264", {"crf": "28"}),
    "grey": (".webm", "libvpx-vp9", {"crf": "24", "b": "0", "cpu-used": "8"}),
}
NOTICE = """Real photographs of real people, interpolated motion, simulated sources.

Photographs: DeBruine, L. & Jones, B. (2017), Face Research Lab London Set, version 5, figshare,
doi 10.6084/m9.figshare.5047666.v5, CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/).
Changed: cropped, resized, warped by optical flow, dissolved, and filmed as by other cameras.
"""


def build(
    faces: Path,
    output: Path,
    *,
    draws: int = 4,
    size: int = 160,
    seed: int = 0,
    report: Callable[[str], None] = print,
) -> None:
    """Write everything.

    Args:
        faces: folder of the photographs.
        output: folder to fill.
        draws: clips of each person and class.
        size: side of the frames in pixels.
        seed: of the people in sources and splits, and of the clips.
        report: told what is written.
    """
    filmed, lines = sources_of(faces, seed), {}
    for source, people in filmed.items():
        (output / source).mkdir(parents=True, exist_ok=True)
        length = len(people) * len(CLASSES) * draws
        clips = DynamicsClips("all", length, size, (source,), seed, faces)
        suffix = _FORMATS[source][0]
        for index, clip in track(enumerate(clips.clips), f"writing {source}", length):
            frames = clips.frames(index)
            write_video(output / f"{clip.name}{suffix}", frames, source)
            lines[clip.name] = f"{clip.name}{suffix} {len(frames)} {clip.label}\n"
        report(f"{source}: {len(people)} people, {length} clips")
    for source in filmed:
        inside = {name: name.startswith(f"{source}/") for name in lines}
        for name, wanted in (("only", True), ("without", False)):
            chosen = [line for clip, line in lines.items() if inside[clip] is wanted]
            (output / f"{name}_{source}.txt").write_text("".join(chosen), encoding="utf-8")
    _write_people(output / "people.csv", faces, seed)
    (output / "NOTICE.txt").write_text(NOTICE, encoding="utf-8")


def write_video(path: Path, frames: Frames, source: str) -> None:
    """Encode a clip as its source does."""
    _, codec, options = _FORMATS[source]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=RATE, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _write_people(path: Path, faces: Path, seed: int) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["person", "age", "gender", "ethnicity", "source", "split"])
        for source, filmed in sources_of(faces, seed).items():
            for split in ("train", "val", "test"):
                for one in part_of(filmed, split):
                    table.writerow([one.name, one.age, one.gender, one.ethnicity, source, split])


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--faces", type=Path, default=LONDON, help="photographs; by default the repository's")
    add("--output", type=Path, required=True, help="folder to fill")
    add("--draws", type=int, default=4, help="clips of each person and class")
    add("--size", type=int, default=160, help="side of the frames in pixels")
    add("--seed", type=int, default=0, help="of the people in sources and splits, and of the clips")
    options = parser.parse_args(arguments)
    build(
        options.faces,
        options.output,
        draws=options.draws,
        size=options.size,
        seed=options.seed,
        report=partial(print, flush=True),
    )


if __name__ == "__main__":
    program(main)
