"""Which backbones are known: one dictionary of frozen records; what adapters choose blocks with.

An adapter is chosen by the qualified class name, looked for along the method resolution order, so
that subclasses are found too and no backbone library is ever imported.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeVar

from torch import nn

from hdf_modules.backbones.probe import Observation
from hdf_modules.backbones.stage import Stage
from hdf_modules.errors import HDFError


class Found(NamedTuple):
    """Stages, and the forward that an adapter has watched them in, so that it is not run again."""

    stages: list[Stage]
    seen: Observation


Item = TypeVar("Item")
FindStages = Callable[[nn.Module, int, Any], Sequence[Stage] | Found]
MakeExample = Callable[[nn.Module, int], Any]


@dataclass(frozen=True)
class Adapter:
    """What is known about a family of backbones.

    Args:
        pattern: of the qualified class name, with ``*`` and ``?``.
        find_stages: ``(model, num_frames, example) -> stages``, or `Found`.
        make_example: ``(model, num_frames) -> sample``, or ``None``.
    """

    pattern: str
    find_stages: FindStages
    make_example: MakeExample | None = None


_ADAPTERS: dict[str, Adapter] = {}


def register_adapter(
    pattern: str, *, example: MakeExample | None = None
) -> Callable[[FindStages], FindStages]:
    """Teach `attach` a backbone of your own; a decorator.

    The function takes ``(model, num_frames, example)`` and returns the stages. ``example`` is the
    sample input given to ``attach``, or made by the function given here, or ``None``.

    Args:
        pattern: the qualified name of the class (module and name), ``*`` standing for anything:
            ``"*.TinyNet"`` is a class of that name in any module. Subclasses are found too. Among
            patterns that fit a class, the latest registered is used.
        example: ``(model, num_frames) -> sample``, one clip as the model takes it (or one frame,
            where the model sees frames); with it every ``attach`` is verified by one forward.

    Raises:
        HDFError: if the pattern is registered already.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hdf_modules import Stage, attach, register_adapter
        >>> class MyNet(nn.Sequential):
        ...     pass
        >>> @register_adapter("*.MyNet", example=lambda model, t: torch.rand(1, 3, t, 16, 16))
        ... def tiny_net(model, num_frames, example):
        ...     return [Stage("0", channels=8), Stage("1", channels=12)]
        >>> net = attach(MyNet(nn.Conv3d(3, 8, 3), nn.Conv3d(8, 12, 3)), num_frames=8)
        >>> [name for name, _ in net.named_modules() if name.endswith("dam")]
        ['0.dam', '1.dam']
    """

    def register(find_stages: FindStages) -> FindStages:
        if pattern in _ADAPTERS:
            taken = _ADAPTERS[pattern].find_stages
            raise HDFError("pattern", "a pattern that is not registered", repr(pattern), f"{taken}")
        _ADAPTERS[pattern] = Adapter(pattern, find_stages, example)
        return find_stages

    return register


def find_adapter(model: nn.Module) -> Adapter | None:
    """Return the adapter of the most specific class of the model that has one."""
    latest_first = list(reversed(_ADAPTERS.values()))
    for cls in type(model).__mro__:
        name = f"{cls.__module__}.{cls.__qualname__}"
        for adapter in latest_first:
            if fnmatchcase(name, adapter.pattern):
                return adapter
    return None


def unknown(model: nn.Module, seen: str) -> HDFError:
    """Return the error of a model that is not known, with what experiments showed of it."""
    found = f"{type(model).__module__}.{type(model).__qualname__}"
    hint = (
        "name its stages by hand: attach(model, num_frames, stages=[Stage(name, channels, layout), "
        "...]), or teach it once with register_adapter"
    )
    names = {pattern.rpartition(".")[2]: pattern for pattern in _ADAPTERS}
    close = difflib.get_close_matches(type(model).__name__, names, n=3)
    if close:
        hint += "; nearest: " + ", ".join(names[name] for name in close)
    expected = "a known backbone (list_backbones() has them) or one whose stages an example shows"
    return HDFError("model", expected, f"{found}; {seen}", hint)


def list_backbones(pattern: str = "*") -> list[str]:
    """Return what is known: patterns of qualified class names, sorted.

    Args:
        pattern: of their names, with ``*`` and ``?``; upper and lower case alike.

    Example:
        >>> list_backbones("*videoresnet")
        ['torchvision.models.video.*.VideoResNet']
    """
    wanted = pattern.lower()
    return sorted(known for known in _ADAPTERS if fnmatchcase(known.lower(), wanted))


def evenly_spaced(blocks: Sequence[Item], *, class_token_alone: bool = False) -> list[Item]:
    """Return the last block of each quarter of a model that keeps one resolution.

    Four, as there are stages in the networks that have some.

    Args:
        blocks: in the order of execution.
        class_token_alone: the classifier reads no other token. What attention does to the patches
            after the last block is then lost, so the block before is taken in its place.

    Example:
        >>> evenly_spaced(range(12))
        [2, 5, 8, 11]
        >>> evenly_spaced(range(12), class_token_alone=True)
        [2, 5, 8, 10]
    """
    count = len(blocks)
    ends = {max(0, -(-count * i // 4) - 1) for i in range(1, 5)}
    if class_token_alone:
        ends = {min(end, count - 2) for end in ends}
    return [blocks[i] for i in sorted(ends) if i >= 0]


def blocks_named(model: nn.Module, class_name: str) -> list[str]:
    """Return the names of the modules of a class, whose path differs between releases."""
    return [name for name, module in model.named_modules() if type(module).__name__ == class_name]
