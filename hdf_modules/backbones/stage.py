"""A place in a model where attention goes, and how to read the tensor found there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hdf_modules.attention.layout import Layout
from hdf_modules.errors import HDFError


@dataclass(frozen=True)
class Stage:
    """One module of a model whose output is to be gated.

    The output may be a tensor, or a tuple or list whose first element is one; the other elements
    pass through. If the second is the run-time size of a folded grid, as in MViT's
    ``(tokens, (t, h, w))``, it is used.

    Args:
        name: the module's name, as in ``model.named_modules()``.
        channels: C of its output.
        layout: einops-style pattern of its output, see
            :class:`~hdf_modules.DistributionalAttention`.
        num_frames: T at this module, where it differs from the clip's. Needed only where time is
            folded into another axis; elsewhere it is read from the tensor.
        prefix_tokens: tokens before the grid, such as a class token.
        suffix_tokens: tokens after it, such as prompts.
        grid: (height, width) of a folded grid that is not square.
        unpack: for outputs that no layout describes: a module-level function from the module's
            output to a tensor in ``layout``.
        pack: its counterpart, ``pack(output, gated) -> output``.

    Raises:
        HDFError: for an impossible layout, a size below one, or an ``unpack`` or ``pack`` that
            could not be pickled with the model.

    Example:
        >>> Stage("layer1", 64).layout
        'b c t h w'
        >>> stage = Stage("blocks.2", 768, "(b t) (h w) c", prefix_tokens=1)
        >>> tokens = torch.ones(16, 197, 768)
        >>> stage.axes.sizes(tokens, num_frames=16)["h"]
        14
    """

    name: str
    channels: int
    layout: str = "b c t h w"
    num_frames: int | None = None
    prefix_tokens: int = 0
    suffix_tokens: int = 0
    grid: tuple[int, int] | None = None
    unpack: Callable[[Any], Tensor] | None = None
    pack: Callable[[Any, Tensor], Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise HDFError("Stage.name", "a module's name, as in named_modules()", repr(self.name))
        for field in ("channels", "num_frames"):
            value = getattr(self, field)
            optional = field == "num_frames" and value is None
            if not optional and (not isinstance(value, int) or value < 1):
                raise HDFError(f"Stage.{field} of {self.name!r}", "an integer >= 1", repr(value))
        self._check_functions()
        _ = self.axes

    def _check_functions(self) -> None:
        if (self.unpack is None) != (self.pack is None):
            raise HDFError("Stage.unpack, Stage.pack", "both or neither", "one of them")
        for function in (self.unpack, self.pack):
            # Lambdas and local functions would make the whole model impossible to pickle.
            if "<" in getattr(function, "__qualname__", ""):
                raise HDFError(
                    "Stage.unpack, Stage.pack",
                    "functions defined at module level",
                    f"{function!r}",
                    "move it to the top of its file so that the model can be pickled",
                )

    @property
    def axes(self) -> Layout:
        """The layout with the stage's tokens and grid."""
        return Layout(self.layout, self.prefix_tokens, self.suffix_tokens, self.grid)

    def read(self, output: Any) -> tuple[Tensor, dict[str, Any]]:
        """Return the tensor to gate and its run-time ``frames`` and ``grid``, where given.

        Raises:
            HDFError: if there is no tensor where the stage says.
        """
        if self.unpack is not None:
            x, sizes = self.unpack(output), {}
        elif isinstance(output, (tuple, list)) and output:
            x, sizes = output[0], _run_time_sizes(output) if self._folds_grid else {}
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

    @property
    def _folds_grid(self) -> bool:
        return "h w)" in self.layout or "(h w" in self.layout

    def write(self, output: Any, gated: Tensor) -> Any:
        """Put the gated tensor where :meth:`read` found it."""
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
    return grid | {"frames": size[0]} if len(size) == 3 else grid
