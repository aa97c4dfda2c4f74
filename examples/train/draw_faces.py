"""Draw the picture of the built-in clips: seven expressions over time, and the sources' styles.

python -m examples.train.draw_faces examples/assets/faces.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from examples.train.data.expressions import CLASSES, EMFACS
from examples.train.data.face import Pose, draw, sample_identity
from examples.train.data.styles import SOURCES, film

SIDE, GAP, BAND = 112, 6, 22
_PEOPLE = (10, 11, 14, 12, 3, 46, 21)  # seeds, for a varied company


def picture() -> Image.Image:
    """One column per expression, from onset to apex; a last row as each source films."""
    rows = [0.0, 0.5, 1.0]
    width = len(CLASSES) * (SIDE + GAP) + GAP
    height = BAND + (len(rows) + 1) * (SIDE + GAP) + GAP + BAND
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    for column, name in enumerate(CLASSES):
        x = GAP + column * (SIDE + GAP)
        _caption(pen, name, x, 0)
        for row, strength in enumerate(rows):
            sheet.paste(_face(column, name, strength), (x, BAND + row * (SIDE + GAP)))
        style = SOURCES[column % len(SOURCES)]
        y = BAND + len(rows) * (SIDE + GAP)
        sheet.paste(_filmed(column, name, column % len(SOURCES)), (x, y))
        _caption(pen, f"“{style.name}”", x, y + SIDE)
    return sheet


def _caption(pen: ImageDraw.ImageDraw, text: str, x: int, y: int) -> None:
    font = ImageFont.load_default(13)
    pen.text((x + SIDE / 2, y + BAND / 2), text, fill=(60, 66, 76), anchor="mm", font=font)


def _face(person: int, name: str, strength: float) -> Image.Image:
    who = sample_identity(np.random.default_rng(_PEOPLE[person]))
    units = {unit: strength * level for unit, level in EMFACS[name].items()}
    return draw(
        who, units, size=SIDE, pose=Pose(turn=0.02 * (person - 3)), background=(214, 219, 226)
    )


def _filmed(person: int, name: str, source: int) -> Image.Image:
    style, rng = SOURCES[source], np.random.default_rng(3)
    who = sample_identity(np.random.default_rng(_PEOPLE[person]))
    frame = draw(
        who, EMFACS[name], size=SIDE, background=style.background, pose=Pose(scale=style.zoom)
    )
    return Image.fromarray(film([frame], style, rng)[0])


def main() -> None:
    """Write the picture to the path given."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("path", type=Path, help="PNG file to write")
    path = parser.parse_args().path
    path.parent.mkdir(parents=True, exist_ok=True)
    picture().quantize(255).save(path, optimize=True)


if __name__ == "__main__":
    main()
