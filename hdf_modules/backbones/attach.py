"""Put an attention module behind each stage of a backbone, and take them away again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import nn

from hdf_modules.attention.module import DistributionalAttention
from hdf_modules.backbones.binding import attached_modules, bind, unbind
from hdf_modules.backbones.checks import (
    refuse_attached,
    refuse_bad_stages,
    refuse_wrapped,
    settled,
    warn_if_unread,
)
from hdf_modules.backbones.first_forward import FirstForward
from hdf_modules.backbones.probe import Observation, device_of, dtype_of, observe
from hdf_modules.backbones.registry import Found, find_adapter
from hdf_modules.backbones.stage import Stage
from hdf_modules.backbones.targets import targets_of
from hdf_modules.errors import HDFError

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
            layout=...)`` with a :class:`~hdf_modules.attention.Layout`; by default
            :class:`~hdf_modules.DistributionalAttention`. ``functools.partial`` sets options.
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
    refuse_wrapped(model)
    refuse_attached(model)
    if not isinstance(num_frames, int) or num_frames < 1:
        raise HDFError("num_frames", "an integer >= 1", repr(num_frames))
    stages, example, seen = _plan(model, num_frames, stages, example)
    targets = targets_of(model, stages)
    if example is not None:
        seen = seen or observe(model, example, stages)
        stages = [
            settled(stage, target, seen, num_frames)
            for stage, target in zip(stages, targets, strict=True)
        ]
        warn_if_unread(stages, seen, num_frames)
    factory = factory or DistributionalAttention
    dams = [_build(factory, stage, num_frames, model) for stage in stages]
    for target, stage, dam in zip(targets, stages, dams, strict=True):
        bind(target, stage, dam)
    if example is None:
        FirstForward(model)
    return model


def detach(model: Model) -> Model:
    """Take the attention away: state_dict keys and outputs are the original model's again.

    Args:
        model: a model that :func:`attach` returned, neither compiled nor wrapped.

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
    refuse_wrapped(model)
    found = [module for _, module in attached_modules(model)]
    if not found:
        raise HDFError("model", "a model with attached attention", "none")
    FirstForward.forget(model)
    for module in found:
        unbind(module)
    return model


def _plan(
    model: nn.Module, num_frames: int, stages: Sequence[Stage] | None, example: Any
) -> tuple[list[Stage], Any, Observation | None]:
    """Find the stages, a sample and what it showed, from the arguments or the adapter."""
    adapter = find_adapter(model) if stages is None else None
    if device_of(model).type == "meta":
        example = None  # nothing can be run there: the first forward is checked
    elif example is None and adapter is not None and adapter.make_example is not None:
        example = adapter.make_example(model, num_frames)
    found = stages if adapter is None else adapter.find_stages(model, num_frames, example)
    stages, seen = found if isinstance(found, Found) else (found, None)
    return refuse_bad_stages(stages), example, seen


def _build(
    factory: Callable[..., nn.Module], stage: Stage, num_frames: int, place: nn.Module
) -> nn.Module:
    """Make the attention of a stage, where and in which precision ``place`` is."""
    dam = factory(stage.channels, stage.num_frames or num_frames, layout=stage.layout)
    if not isinstance(dam, nn.Module):
        raise HDFError("factory", "a function that makes an nn.Module", type(dam).__name__)
    return dam.to(device_of(place), dtype_of(place)).train(place.training)
