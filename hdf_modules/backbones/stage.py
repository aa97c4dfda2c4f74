"""A place in a model where attention goes, and how to read the tensor found there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hdf_modules.attention.layout import BoundLayout, Layout, as_layout, as_layout_keywords
from hdf_modules.errors import HDFError, at_least


@dataclass(frozen=True)
class Stage:
    """One module of a model whose output is to be gated.

    The output may be a tensor, or a tuple or list whose first element is one; the other elements
    pass through. If the second is the run-time size of a folded grid, as in MViT's
    ``(tokens, (t, h, w))``, it is used.

    Args:
        name: the module's name, as in ``model.named_modules()``.
        channels: C of its output.
        layout: of its output: a `Layout`, or the pattern of one.
        num_frames: T at this module, where it differs from the clip's. Needed only where time is
            folded into another axis; elsewhere it is read from the tensor.
        unpack: for outputs that no layout describes: a module-level function from the module's
            output to a tensor in ``layout``.
        pack: its counterpart, ``pack(output, gated) -> output``.

    Raises:
        HDFError: for an impossible layout, a size below one, or an ``unpack`` or ``pack`` that
            could not be pickled with the model.

    Example:
        >>> Stage("layer1", 64).layout
        Layout('b c t h w')
        >>> from hdf_modules.attention import Layout
        >>> Stage("blocks.2", 768, Layout("(b t) (h w) c", prefix_tokens=1)).layout.token_axis
        1
    """

    name: str
    channels: int
    layout: Layout
    num_frames: int | None
    unpack: Callable[[Any], Tensor] | None
    pack: Callable[[Any, Tensor], Any] | None

    # Written out, because a pattern may be given where a layout is kept.
    @as_layout_keywords
    def __init__(
        self,
        name: str,
        channels: int,
        layout: str | Layout = "b c t h w",
        num_frames: int | None = None,
        *,
        unpack: Callable[[Any], Tensor] | None = None,
        pack: Callable[[Any, Tensor], Any] | None = None,
    ) -> None:
        if not isinstance(name, str) or not name:
            raise HDFError("Stage.name", "a module's name, as in named_modules()", repr(name))
        at_least(f"Stage.channels of {name!r}", channels, 1)
        at_least(f"Stage.num_frames of {name!r}", num_frames, 1, or_none=True)
        _check_functions(unpack, pack)
        vars(self).update(name=name, channels=channels, layout=as_layout(layout))
        vars(self).update(num_frames=num_frames, unpack=unpack, pack=pack)

    def read(self, output: Any) -> tuple[Tensor, dict[str, Any]]:
        """Return the tensor to gate and its run-time ``num_frames`` and ``grid``, where given.

        Raises:
            HDFError: if there is no tensor where the stage says.
        """
        if self.unpack is not None:
            x, sizes = self.unpack(output), {}
        elif isinstance(output, (tuple, list)) and output:
            folded = self.layout.token_axis is not None
            x, sizes = output[0], _run_time_sizes(output) if folded else {}
        else:
            x, sizes = output, {}
        if not isinstance(x, Tensor):
            raise HDFError(
                f"stage {self.name!r}",
                "a module that returns a tensor, or a tuple that starts with one",
                f"{type(output).__name__}",
                "name another module, or give unpack and pack",
            )
        return x, sizes

    def axes(self, output: Any, num_frames: int) -> BoundLayout:
        """Return where the tensor to gate keeps its axes, and their lengths.

        Args:
            output: of the module, for a clip or, in a model of images, for one frame.
            num_frames: T of the clip.
        """
        x, run_time = self.read(output)
        groups = self.layout.groups
        one_frame = ("b", "t") in groups and x.shape[groups.index(("b", "t"))] == 1
        frames = 1 if one_frame else self.num_frames or num_frames
        return self.layout.bind(x, run_time.get("num_frames", frames), run_time.get("grid"))

    def write(self, output: Any, gated: Tensor) -> Any:
        """Put the gated tensor where `read` found it."""
        if self.pack is not None:
            return self.pack(output, gated)
        if isinstance(output, tuple) and hasattr(output, "_replace"):  # a named tuple
            return output._replace(**{output._fields[0]: gated})  # type: ignore[attr-defined]
        if isinstance(output, (tuple, list)):
            return type(output)((gated, *output[1:]))
        return gated


def _run_time_sizes(output: tuple[Any, ...] | list[Any]) -> dict[str, Any]:
    """Read ``(tokens, (t, h, w))`` or ``(tokens, (h, w))``."""
    size = output[1] if len(output) > 1 else None
    if not isinstance(size, (tuple, list)) or len(size) not in (2, 3):
        return {}
    if not all(isinstance(n, (int, torch.SymInt)) for n in size):
        return {}
    grid = {"grid": (size[-2], size[-1])}
    return grid | {"num_frames": size[0]} if len(size) == 3 else grid


def _check_functions(unpack: Any, pack: Any) -> None:
    if (unpack is None) != (pack is None):
        raise HDFError(
            "Stage.unpack, Stage.pack", "both or neither", "one of them", "give the other too"
        )
    for function in (unpack, pack):
        # Lambdas and local functions would make the whole model impossible to pickle.
        if "<" in getattr(function, "__qualname__", ""):
            raise HDFError(
                "Stage.unpack, Stage.pack",
                "functions defined at module level",
                f"{function!r}",
                "move it to the top of its file so that the model can be pickled",
            )
