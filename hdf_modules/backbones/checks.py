"""What :func:`~hdf_modules.attach` makes sure of before it changes anything."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

from torch import nn

from hdf_modules.attention.layout import BoundLayout
from hdf_modules.backbones.binding import at_stage, attached_modules
from hdf_modules.backbones.probe import Observation
from hdf_modules.backbones.stage import Stage
from hdf_modules.backbones.targets import refuse_looping
from hdf_modules.errors import HDFError

_WRAPPERS = {
    "OptimizedModule": "torch.compile",
    "DistributedDataParallel": "DistributedDataParallel",
    "DataParallel": "DataParallel",
    "FullyShardedDataParallel": "FullyShardedDataParallel",
    "FSDPModule": "fully_shard",
    "ScriptModule": "torch.jit",
    "WithFeatures": "with_features",
}


def refuse_wrapped(model: nn.Module) -> None:
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


def refuse_attached(model: nn.Module) -> None:
    """Refuse a model that has attention already."""
    name = next((name for name, _ in attached_modules(model)), None)
    if name is not None:
        raise HDFError(
            "model", "a model without attention", f"one at {name!r}", "call detach(model) first"
        )


def refuse_bad_stages(stages: Any) -> list[Stage]:
    """Return the stages as a list if they are stages."""
    stages = [stages] if isinstance(stages, (Stage, str)) else list(stages)
    wrong = [stage for stage in stages if not isinstance(stage, Stage)]
    if wrong or not stages:
        raise HDFError(
            "stages",
            "one or more Stage(name, channels, layout)",
            repr(wrong[0]) if wrong else "none",
            "a name alone does not say which axis holds time and which the channels",
        )
    return stages


def refuse_calls(name: str, calls: int) -> None:
    """Refuse a module that a forward calls never, or more than once."""
    if calls != 1:
        raise HDFError(
            f"stage {name!r}",
            "a module that a forward calls once",
            f"{calls} calls",
            "name a module that is called once",
        )


def settled(stage: Stage, target: nn.Module, seen: Observation, num_frames: int) -> Stage:
    """Check a stage against one forward, and return it with its T filled in."""
    outputs = seen.outputs[stage.name]
    refuse_calls(stage.name, len(outputs))
    if stage.name in seen.looping:
        refuse_looping(stage.name, target)
    with at_stage(stage):
        sizes = axes_of(stage, outputs[0], num_frames).sizes
    _agree(stage, "channels", stage.channels, sizes.c)
    if ("b", "t") in stage.axes.groups:
        return stage
    _agree(stage, "num_frames", stage.num_frames or sizes.t, sizes.t)
    return replace(stage, num_frames=sizes.t)


def axes_of(stage: Stage, output: Any, num_frames: int) -> BoundLayout:
    """Return where a stage's output keeps its axes, with their lengths."""
    x, run_time = stage.read(output)
    frames = 1 if _is_one_frame(stage, x.shape) else stage.num_frames or num_frames
    return stage.axes.bind(x, run_time.get("num_frames", frames), run_time.get("grid"))


def is_unread(stage: Stage, seen: Observation, num_frames: int) -> bool:
    """Whether nothing behind the stage reads the positions that attention would gate.

    So it is after the last block of a transformer whose classifier reads the class token alone,
    and where a module returns a copy of its output for others than the module behind.
    """
    if seen.last != stage.name:
        return stage.name in seen.unread
    if seen.gradient is None:
        return True
    axes = axes_of(stage, seen.outputs[stage.name][-1], num_frames)
    return not bool(axes.clip_view(seen.gradient).any())


def warn_if_unread(stages: list[Stage], seen: Observation, num_frames: int) -> None:
    """Warn about attention that would get no gradient."""
    for stage in stages:
        if is_unread(stage, seen, num_frames):
            warnings.warn(
                f"stage {stage.name!r}: nothing behind it reads what attention changes there, so "
                "it gets no gradient; name the module before it",
                stacklevel=3,
            )


def _is_one_frame(stage: Stage, shape: tuple[int, ...]) -> bool:
    """Whether the sample was one image, for a model that sees a clip as a batch of images."""
    groups = stage.axes.groups
    return ("b", "t") in groups and shape[groups.index(("b", "t"))] == 1


def _agree(stage: Stage, field: str, declared: int, found: int) -> None:
    if declared != found:
        raise HDFError(
            f"{field} of stage {stage.name!r}", f"{found}, as the module gives", declared
        )
