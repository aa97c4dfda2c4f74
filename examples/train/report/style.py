"""One look for all figures, and figures as inline images."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

# Okabe and Ito's palette: distinct for colour-blind readers too.
PALETTE = (
    "#E69F00",
    "#0072B2",
    "#6E6E6E",
    "#D55E00",
    "#009E73",
    "#8B6BB1",
    "#56B4E9",
    "#CC79A7",
    "#B8A800",
)

_RC = {
    "font.size": 10,
    "font.family": ["DejaVu Sans", "sans-serif"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8f98",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e7e9ee",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "report",
    "svg.fonttype": "none",  # text stays text: a browser has fonts for every script
    "text.parse_math": False,  # a dollar in a name is no formula
}

# Of ticks: logarithmic axes write formulas, which would be shown as their source.
PLAIN = "{x:g}"


def colour(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def named(name: str) -> str:
    """A label that the legend shows: those that begin with an underscore it leaves out unasked."""
    return f"\u200b{name}" if name.startswith("_") else name


@contextmanager
def styled() -> Iterator[None]:
    with mpl.rc_context(_RC):
        yield


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **kwargs: Any
) -> tuple[Figure, Any]:
    """A figure without pyplot, which would keep it alive and want a display."""
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(rows, columns, **kwargs)


def inline(figure: Figure, picture: bool = False) -> str:
    """The figure as the source of an ``<img>``: SVG, or PNG where it holds pixels."""
    buffer = io.BytesIO()
    kind = "png" if picture else "svg"
    with warnings.catch_warnings():
        if not picture:  # the reader's fonts draw it, not those of this machine
            warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(buffer, format=kind, dpi=100, metadata={} if picture else {"Date": None})
    mime = "image/png" if picture else "image/svg+xml"
    return f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def drawable(texts: list[str]) -> list[str]:
    """Texts as a picture of pixels can show them, to be called inside :func:`styled`.

    Fonts of this machine that have what the style's font lacks join it. What none of them has is
    replaced by its code point, with one warning.
    """
    lacking = {letter for text in texts for letter in text if not letter.isspace()}
    families = mpl.rcParams["font.family"]
    lacking -= _letters(font_manager.findfont(font_manager.FontProperties(family=families)))
    for font in _installed() if lacking else ():
        if lacking & _letters(font.fname):
            families = [*families, font.name]
            lacking -= _letters(font.fname)
    mpl.rcParams["font.family"] = families
    if lacking:
        shown = ", ".join(sorted(lacking))
        text = "figures show code points; install one that has them, such as Noto Sans CJK"
        warnings.warn(f"no installed font has {shown}: {text}", stacklevel=2)
    code = {ord(letter): letter.encode("unicode_escape").decode() for letter in lacking}
    return [text.translate(code) for text in texts]


def _installed() -> tuple[font_manager.FontEntry, ...]:
    """Upright fonts of ordinary weight, one of each name."""
    plain = (f for f in font_manager.fontManager.ttflist if (f.style, f.weight) == ("normal", 400))
    return tuple({font.name: font for font in plain}.values())


@cache
def _letters(path: str) -> frozenset[str]:
    return frozenset(map(chr, FT2Font(path).get_charmap()))
