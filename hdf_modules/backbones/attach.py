"""Put an attention module behind each stage of a backbone, and take them away again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from hdf_modules.attention.module import DistributionalAttention
from hdf_modules.backbones.hooks import (
    FirstForward,
    at_stage,
    refuse_calls,
    refuse_looping,
    targets_of,
    tie,
    ties,
    untie,
)
from hdf_modules.backbones.probe import Observation, device_of, dtype_of, observe
from hdf_modules.backbones.registry import Found, find_adapter
from hdf_modules.backbones.stage import Stage
from hdf_modules.errors import HDFError, at_least

_WRAPPERS = {
    "OptimizedModule": "torch.compile",
    "DistributedDataParallel": "DistributedDataParallel",
    "DataParallel": "DataParallel",
    "FullyShardedDataParallel": "FullyShardedDataParallel",
    "FSDPModule": "fully_shard",
    "ScriptModule": "torch.jit",
    "WithFeatures": "with_features",
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

    Nothing is changed before everything is checked: the stages are watched during one evaluation
    forward of ``example``, or of a sample that the adapter knows to make. Where there is neither,
    the check happens in the model's first forward.

    Args:
        model: the bare backbone: neither compiled nor wrapped.
        num_frames: T, frames in a clip.
        stages: where attention goes; by default what the backbone's adapter says.
        factory: makes the module of a stage, called as ``factory(channels, num_frames,
            layout=...)`` with a `Layout`; by default
            `DistributionalAttention`. ``functools.partial`` sets options.
        example: a sample that the model takes: a tensor, a tuple of arguments or a dictionary of
            keyword arguments. It may be one frame where the model takes frames.

    Returns:
        The same model.

    Raises:
        HDFError: for a model that is unknown, wrapped, compiled or has attention already, and for
            stages that do not exist, are not called exactly once, or have another shape than
            declared. The model is then as it was.

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
    stages, example, seen = _plan(model, num_frames, stages, example)
    targets = targets_of(model, stages)
    if example is not None:
        seen = seen or observe(model, example, stages)
        pairs = zip(stages, targets, strict=True)
        stages = [_settled(stage, target, seen, num_frames) for stage, target in pairs]
        _warn_if_unread(stages, seen, num_frames)
    factory = factory or DistributionalAttention
    dams = [_build(factory, stage, num_frames, model) for stage in stages]
    for target, stage, dam in zip(targets, stages, dams, strict=True):
        tie(target, stage, dam)
    if example is None:
        FirstForward(model)
    return model


def detach(model: Model) -> Model:
    """Take the attention away: state_dict keys and outputs are the original model's again.

    Args:
        model: a model that `attach` returned, neither compiled nor wrapped.

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
    _refuse_wrapped(model)
    found = ties(model)
    if not found:
        raise HDFError("model", "a model with attached attention", "none")
    FirstForward.forget(model)
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


def _plan(
    model: nn.Module, num_frames: int, stages: Sequence[Stage] | None, example: Any
) -> tuple[list[Stage], Any, Observation | None]:
    """Find the stages, a sample and what it showed, from the arguments or the adapter."""
    adapter = find_adapter(model) if stages is None else None
    if device_of(model).type == "meta":
        example = None  # nothing can be run there: the first forward is checked
    elif example is None and adapter is not None and adapter.make_example is not None:
        example = adapter.make_example(model, num_frames)
    found: Any = stages if adapter is None else adapter.find_stages(model, num_frames, example)
    found, seen = found if isinstance(found, Found) else (found, None)
    planned: list[Any] = [found] if isinstance(found, (Stage, str)) else list(found)
    wrong = [stage for stage in planned if not isinstance(stage, Stage)]
    if wrong or not planned:
        raise HDFError(
            "stages",
            "one or more Stage(name, channels, layout)",
            repr(wrong[0]) if wrong else "none",
            "a name alone does not say which axis holds time and which the channels",
        )
    return planned, example, seen


def _settled(stage: Stage, target: nn.Module, seen: Observation, num_frames: int) -> Stage:
    """Check a stage against one forward, and return it with its T filled in."""
    outputs = seen.outputs[stage.name]
    refuse_calls(stage.name, len(outputs))
    if stage.name in seen.looping:
        refuse_looping(stage.name, target)
    with at_stage(stage):
        sizes = stage.axes(outputs[0], num_frames).sizes
    _agree(stage, "channels", stage.channels, sizes.c)
    if ("b", "t") in stage.layout.groups:
        return stage
    _agree(stage, "num_frames", stage.num_frames or sizes.t, sizes.t)
    return replace(stage, num_frames=sizes.t)


def _agree(stage: Stage, field: str, declared: int, found: int) -> None:
    if declared != found:
        raise HDFError(
            f"{field} of stage {stage.name!r}", f"{found}, as the module gives", declared
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
