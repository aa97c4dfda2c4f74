"""Put an attention module behind each stage of a backbone, and take them away again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import nn

from hdf_modules.attention.module import DistributionalAttention
from hdf_modules.backbones.features import WithFeatures
from hdf_modules.backbones.hooks import FirstForward, targets_of, tie, ties, untie
from hdf_modules.backbones.plan import checked, planned
from hdf_modules.backbones.probe import Observation, device_of, dtype_of
from hdf_modules.backbones.stage import Stage
from hdf_modules.errors import HDFError, at_least

_WRAPPERS = {
    "OptimizedModule": "torch.compile",
    "DistributedDataParallel": "DistributedDataParallel",
    "DataParallel": "DataParallel",
    "FullyShardedDataParallel": "FullyShardedDataParallel",
    "FSDPModule": "fully_shard",
    "ScriptModule": "torch.jit",
    WithFeatures.__name__: "with_features",
}

Model = TypeVar("Model", bound=nn.Module)


def attach(
    model: Model,
    num_frames: int,
    *,
    stages: Sequence[Stage] | None = None,
    factory: Callable[..., nn.Module] | None = None,
    example: Any = None,
) -> Model:
    """Put distributional attention behind each stage of a backbone, in place.

    The order is: load pretrained weights, ``attach``, build the optimizer, then wrap (DDP, FSDP)
    or compile. With the default factory no output changes by a single bit until the first
    optimizer step, and the original checkpoint still loads with ``strict=True``.

    A model of images sees a clip as ``num_frames`` consecutive images of its batch,
    ``(b t) c h w``.

    In a model that is not known the places and their layouts are found by experiment, on
    ``example`` or on a clip that the model takes; `explain` shows what was found and why.

    Nothing is changed before everything is checked: the stages are watched during one evaluation
    forward of ``example``, or of a sample that the adapter knows to make. Where there is neither,
    the check happens in the model's first forward.

    Args:
        model: the bare backbone: neither compiled nor wrapped.
        num_frames: T, frames in a clip.
        stages: where attention goes; by default what the backbone's adapter says, or what
            experiments show.
        factory: makes the module of a stage, called as ``factory(channels, num_frames,
            layout=...)`` with a `Layout`; by default
            `DistributionalAttention`. ``functools.partial`` sets options.
        example: a sample that the model takes: a tensor, a tuple of arguments or a dictionary of
            keyword arguments. It may be one frame where the model takes frames.

    Returns:
        The same model.

    Raises:
        HDFError: for a model in which no place is found, that is wrapped, compiled or has attention
            already, and for stages that do not exist, are not called exactly once, or have
            another shape than declared. The model is then as it was.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hdf_modules import Stage, attach
        >>> net = nn.Sequential(nn.Conv3d(3, 8, 3), nn.ReLU())
        >>> clips = torch.rand(2, 3, 16, 10, 10)
        >>> before = net(clips)
        >>> net = attach(net, num_frames=16, stages=[Stage("1", 8)], example=clips)
        >>> torch.equal(net(clips), before)
        True
    """
    _refuse_wrapped(model)
    for name, *_ in ties(model):
        hint = "call detach(model) first"
        raise HDFError("model", "a model without attention", f"one at {name!r}", hint)
    at_least("num_frames", num_frames, 1)
    plan = checked(model, num_frames, planned(model, num_frames, stages, example))
    if plan.seen is not None:
        _warn_if_unread(plan.stages, plan.seen, num_frames)
    factory = factory or DistributionalAttention
    dams = [_build(factory, stage, num_frames, model) for stage in plan.stages]
    targets = targets_of(model, plan.stages)
    for parts in zip(targets, plan.stages, dams, plan.sizes, strict=True):
        tie(*parts)
    if plan.example is None:
        FirstForward(model)
    return model


def detach(model: Model) -> Model:
    """Take the attention away: state_dict keys and outputs are the original model's again.

    Args:
        model: a model that `attach` returned, or that and then `with_features`, neither compiled
            nor wrapped.

    Raises:
        HDFError: if nothing is attached, or the model is compiled or wrapped.

    Example:
        >>> from torch import nn
        >>> from hdf_modules import Stage, attach, detach
        >>> net = nn.Sequential(nn.Conv3d(3, 8, 3))
        >>> keys = list(net.state_dict())
        >>> list(detach(attach(net, 16, stages=[Stage("0", 8)])).state_dict()) == keys
        True
    """
    bare: nn.Module = model.model if isinstance(model, WithFeatures) else model
    _refuse_wrapped(bare)
    found = ties(bare)
    if not found:
        raise HDFError("model", "a model with attached attention", "none", "call attach first")
    FirstForward.forget(bare)
    for _, target, *_ in found:
        untie(target)
    return model


def _refuse_wrapped(model: nn.Module) -> None:
    """Refuse a compiled model, which ignores later hooks, and wrappers that know the parameters."""
    if not isinstance(model, nn.Module):
        raise HDFError("model", "an nn.Module", type(model).__name__)
    for module in model.modules():
        names = [cls.__name__ for cls in type(module).__mro__]
        wrapper = next((_WRAPPERS[name] for name in names if name in _WRAPPERS), None)
        if getattr(module, "_compiled_call_impl", None) is not None:
            wrapper = "Module.compile"
        if wrapper:
            raise HDFError(
                "model",
                "the bare model",
                f"one wrapped by {wrapper}",
                "attach (or detach) first, then build the optimizer, then wrap or compile",
            )


def _warn_if_unread(stages: list[Stage], seen: Observation, num_frames: int) -> None:
    """Warn about attention that would get no gradient."""
    for stage in stages:
        if seen.leaves_unread(stage, num_frames):
            warnings.warn(
                f"stage {stage.name!r}: nothing behind it reads what attention changes there, so "
                "it gets no gradient; name the module before it",
                stacklevel=3,
            )


def _build(
    factory: Callable[..., nn.Module], stage: Stage, num_frames: int, place: nn.Module
) -> nn.Module:
    """Make the attention of a stage, where and in which precision ``place`` is."""
    dam = factory(stage.channels, stage.num_frames or num_frames, layout=stage.layout)
    if not isinstance(dam, nn.Module):
        raise HDFError("factory", "a function that makes an nn.Module", type(dam).__name__)
    return dam.to(device_of(place), dtype_of(place)).train(place.training)
