"""One look for all figures, and figures as inline images."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

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
    "font.family": "DejaVu Sans",
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
}


def colour(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


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
    figure.savefig(buffer, format=kind, dpi=100, metadata={} if picture else {"Date": None})
    mime = "image/png" if picture else "image/svg+xml"
    return f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}"
