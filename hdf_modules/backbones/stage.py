"""A place in a model where attention goes, and how to read the tensor found there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hdf_modules.attention.layout import Layout, as_layout
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
        layout: of its output: a :class:`~hdf_modules.attention.Layout`, or the pattern of one.
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
    layout: str | Layout = "b c t h w"
    num_frames: int | None = None
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
        object.__setattr__(self, "layout", as_layout(self.layout))

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
        """The layout, which is one from the start, whatever was given."""
        return as_layout(self.layout)

    def read(self, output: Any) -> tuple[Tensor, dict[str, Any]]:
        """Return the tensor to gate and its run-time ``num_frames`` and ``grid``, where given.

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
        return self.axes.token_axis is not None

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
    return grid | {"num_frames": size[0]} if len(size) == 3 else grid
