"""Which modules all of the computation passes through, from one forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from hdf_modules.backbones.nested import exchanged, tensors_in
from hdf_modules.backbones.probe import leaves_behind, without_checkpointing
from hdf_modules.backbones.stage import Stage
from hdf_modules.errors import HDFError


@dataclass
class Passage:
    """One call of a module, in the order of the outputs.

    Args:
        name: of the module.
        shape: of its output.
        same: the call whose output it hands on as it is, as an ``nn.Sequential`` its last child's.
        needed: whether everything behind passes through here.
    """

    name: str
    shape: tuple[int, ...]
    same: int | None = None
    needed: bool = False


@dataclass
class Flow:
    """The graph of module outputs of one forward, cut at every output.

    ``parents[i]`` are the outputs that output i is computed from, as bits; bit 0 is the input.
    """

    passages: list[Passage] = field(default_factory=list)
    parents: list[int] = field(default_factory=lambda: [0])
    bits: dict[int, int] = field(default_factory=dict)
    leaves: list[Tensor] = field(default_factory=list)  # alive, so that no identity is used twice

    @contextmanager
    def followed(self, model: nn.Module, inputs: list[Tensor]) -> Iterator[None]:
        """Watch one forward, for which these inputs require gradients."""
        for x in inputs:
            self.bits[id(x)] = 0
        with ExitStack() as stack, without_checkpointing():
            for name, module in model.named_modules():
                if name:
                    handle = module.register_forward_hook(partial(self._cut, name))
                    stack.callback(handle.remove)
            yield

    def _cut(self, name: str, module: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook: note what the output depends on, and let a new graph start there."""
        stage = Stage(name, 1)
        try:
            x, _ = stage.read(output)
        except HDFError:
            return None
        if not (x.is_floating_point() and x.requires_grad):
            return None
        # Of several pathways all go through here, though attention is for the first.
        paths = [y for y in tensors_in(output) if y.ndim == x.ndim and y.requires_grad] or [x]
        sources = {self._handed_on(path) for path in paths}
        same = sources.pop() if len(sources) == 1 else None
        self.passages.append(Passage(name, tuple(x.shape), same))
        if same is not None:
            self.parents.append(1 << (same + 1))
            return None
        self.parents.append(self._read_by(paths))
        for path in paths:
            leaf = path.detach().requires_grad_()
            self.bits[id(leaf)] = len(self.passages)
            self.leaves.append(leaf)
            # A copy, as code behind may write into it, which a leaf does not allow.
            output = exchanged(output, path, leaf.clone())
        return output

    def _handed_on(self, x: Tensor) -> int | None:
        """Return the call whose output this is, untouched."""
        node: Any = x.grad_fn
        if node is None or type(node).__name__ != "CloneBackward0":
            return None
        source = getattr(node.next_functions[0][0], "variable", None)
        bit = self.bits.get(id(source), 0)
        return bit - 1 if bit else None

    def _read_by(self, ends: list[Tensor]) -> int:
        found = 0
        for identity in leaves_behind(ends):
            if identity in self.bits:
                found |= 1 << self.bits[identity]
        return found

    def finish(self, result: Any) -> list[Passage]:
        """Return the calls, with those marked that every path to the result passes through.

        And the numbered blocks behind such a one that every path to the last of them passes
        through: the result may read their outputs too, which attention changes for all readers.
        """
        ends = [x for x in tensors_in(result) if x.requires_grad]
        above = [1]  # of each output: those that all paths from the input to it pass through
        for own, parents in enumerate([*self.parents[1:], self._read_by(ends)], start=1):
            common = -1  # every bit: of an output that no path reaches
            for i in range(own):
                if parents >> i & 1:
                    common &= above[i]
            above.append(common | 1 << own)
        for i, passage in enumerate(self.passages, start=1):
            if passage.same is not None:
                passage.needed = self.passages[passage.same].needed
            else:
                passage.needed = above[-1] >= 0 and bool(above[-1] >> i & 1)
        rows: dict[str, list[int]] = {}
        for i, passage in enumerate(self.passages, start=1):
            parent, _, number = passage.name.rpartition(".")
            if number.isdigit():
                rows.setdefault(parent, []).append(i)
        for row in rows.values():
            for i in row if any(self.passages[i - 1].needed for i in row) else ():
                self.passages[i - 1].needed |= bool(above[row[-1]] >> i & 1)
        return self.passages
