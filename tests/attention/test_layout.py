"""Layouts as patterns: what they accept, what they view, and what they say otherwise."""

import math

import pytest
import torch

from hdf_modules import HDFError
from hdf_modules.attention.layout import Layout

SIZES = {"b": 2, "t": 3, "c": 5, "h": 4, "w": 6}


def shaped(pattern, extra, device):
    layout = Layout(pattern)
    lengths = []
    for dim, group in enumerate(layout.groups):
        length = 1
        for axis in group:
            length *= SIZES[axis]
        lengths.append(length + extra * (dim == layout.token_axis))
    return torch.arange(float(math.prod(lengths)), device=device).view(lengths)


PATTERNS = [
    "b c t h w",
    "t b c h w",
    "(b t) c h w",
    "(b t) (h w) c",
    "(h w) (b t) c",
    "b (t h w) c",
]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("tokens", [(0, 0), (2, 1)])
def test_the_view_shares_memory_and_finds_every_axis(pattern, tokens, device):
    layout = Layout(pattern, grid=(4, 6))
    if layout.token_axis is None:
        tokens = (0, 0)
    else:
        layout = Layout(pattern, *tokens, grid=(4, 6))
    x = shaped(pattern, sum(tokens), device)
    sizes = layout.sizes(x, SIZES["t"])
    assert sizes == SIZES
    axes = layout.bind(x, SIZES["t"])
    clip = axes.clip_view(x)
    assert clip.shape == (2, 3, 5, 4, 6)
    assert clip.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    gate = torch.rand(2, 3, 4, 6, device=device)
    gated = axes.clip_view(x * layout.broadcast(gate))
    assert torch.equal(gated, clip * gate[:, :, None])


def test_a_grid_is_square_unless_given_and_the_call_comes_first(device):
    x = torch.zeros(6, 16, 5, device=device)
    assert Layout("(b t) (h w) c").sizes(x, 3) == {"b": 2, "t": 3, "c": 5, "h": 4, "w": 4}
    assert Layout("(b t) (h w) c", grid=(2, 8)).sizes(x, 3)["h"] == 2
    assert Layout("(b t) (h w) c", grid=(2, 8)).sizes(x, 3, (8, 2))["h"] == 8


def test_a_grid_tells_the_clip_length_of_a_folded_video(device):
    x = torch.zeros(2, 3 * 4 * 6, 5, device=device)
    assert Layout("b (t h w) c", grid=(4, 6)).sizes(x, 16) == SIZES


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "b c t h",
        "b c t h w w",
        "b c t (h w",
        "(c t) b h w",
        "(b h) c t w",
        "b x t h w",
        "b c t d h w",
        "((b t)) c h w",
        None,
    ],
)
def test_patterns_that_are_none(pattern):
    with pytest.raises(
        HDFError, match=r"layout: (view what .*)?expected a pattern with each of b, t, c"
    ):
        Layout(pattern)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"prefix_tokens": -1}, "prefix_tokens: expected an integer >= 0, found -1"),
        ({"suffix_tokens": -1}, "suffix_tokens: expected an integer >= 0, found -1"),
        ({"pattern": "b c t h w", "suffix_tokens": 1}, "suffix_tokens: expected 0 in a layout wit"),
        ({"grid": (1, 2, 3)}, r"grid: expected \(height, width\), both >= 1, found \(1, 2, 3\)"),
        ({"prefix_tokens": 1.5}, r"prefix_tokens: expected an integer >= 0, found 1\.5"),
        ({"grid": 4}, r"grid: expected \(height, width\), both >= 1, found 4"),
        ({"grid": (0, 2)}, r"grid: expected \(height, width\), both >= 1"),
    ],
)
def test_options(options, match):
    with pytest.raises(HDFError, match=match):
        Layout(**{"pattern": "(b t) (h w) c"} | options)


@pytest.mark.parametrize(
    ("layout", "shape", "match"),
    [
        (
            Layout("b c t h w"),
            (1, 2, 3, 4),
            "x: expected 5 dimensions, layout 'b c t h w'",
        ),
        (Layout("(b t) c h w"), (7, 5, 4, 6), r"multiple of num_frames=3 on the '\(b t\)' axis"),
        (
            Layout("(b t) (h w) c"),
            (3, 15, 5),
            r"x: give grid=\(height, .*expected 3×3 tokens besides 0 prefix and 0 suf",
        ),
        (Layout("(b t) (h w) c", 20), (3, 16, 5), "besides 20 prefix"),
        (Layout("b (t h w) c", grid=(4, 6)), (2, 71, 5), "frames of 4×6 tokens"),
        (Layout("b c t h w"), (1, 0, 3, 4, 4), "at least one frame, channel, row and column"),
    ],
)
def test_shapes_that_do_not_fit(layout, shape, match, device):
    with pytest.raises(HDFError, match=match):
        layout.sizes(torch.zeros(shape, device=device), 3)
