"""Where attention is to go in a model: as said, as known of its class, or by experiment."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import nn

from hdf_modules.backbones.discovery import explore
from hdf_modules.backbones.hooks import Seen, at_stage, refuse_calls, refuse_looping, targets_of
from hdf_modules.backbones.probe import Observation, device_of, observe
from hdf_modules.backbones.registry import Adapter, Found, find_adapter, unknown
from hdf_modules.backbones.stage import Stage
from hdf_modules.errors import HDFError

_LOG = logging.getLogger(__name__)


class Plan(NamedTuple):
    """Where attention goes, the sample it was looked at with, what that showed, T, H, W there."""

    stages: list[Stage]
    example: Any
    seen: Observation | None = None
    sizes: Sequence[Seen | None] = ()


def planned(
    model: nn.Module, num_frames: int, stages: Sequence[Stage] | None, example: Any
) -> Plan:
    """Find the stages, a sample and what it showed: as said, as known, or by experiment."""
    unseen = device_of(model).type == "meta"  # nothing can be run there
    if stages is not None:
        return Plan(_as_stages(stages), None if unseen else example)
    adapter, refusal = find_adapter(model), None
    if adapter is not None:
        try:
            return _known(adapter, model, num_frames, None if unseen else example, unseen)
        except _Unlike as error:  # another class of the same name: look for oneself
            refusal = error.args[0]
    if unseen:
        raise refusal or unknown(model, "on the meta device nothing can be tried")
    found = explore(model, num_frames, example)
    if not found.stages:
        raise refusal or unknown(model, str(found))
    line = str(found).splitlines()[-1]
    _LOG.info("%s: places found by experiment: %s", type(model).__name__, line)
    return Plan(found.stages, found.example, found.seen)


def _as_stages(stages: Any) -> list[Stage]:
    given: list[Any] = [stages] if isinstance(stages, (Stage, str)) else list(stages)
    wrong = [stage for stage in given if not isinstance(stage, Stage)]
    if wrong or not given:
        raise HDFError(
            "stages",
            "one or more Stage(name, channels, layout)",
            repr(wrong[0]) if wrong else "none",
            "write Stage(name, channels, layout): a name alone does not say which axis is time",
        )
    return given


class _Unlike(Exception):  # noqa: N818 - it never leaves this file
    """A model is not what its class's name says; holds the error to raise if nothing else helps."""


def _known(adapter: Adapter, model: nn.Module, num_frames: int, example: Any, unseen: bool) -> Plan:
    """Ask an adapter.

    Raises:
        HDFError: what the adapter refuses, or an example that the model does not take.
        _Unlike: if the model lacks what the adapter says.
    """
    made = example is None and adapter.make_example is not None and not unseen
    try:
        if made:
            example = adapter.make_example(model, num_frames)  # type: ignore[misc]
        found: Any = adapter.find_stages(model, num_frames, example)
    except HDFError:
        raise
    except Exception as error:  # whatever an adapter stumbles over in a model of another kind
        lacks = f"one that lacks what it takes: {type(error).__name__}: {error}"
        hint = "name its stages by hand, or give an example"
        refusal = HDFError("model", f"what {adapter.pattern} stands for", lacks, hint)
        raise _Unlike(refusal) from error
    found, seen = found if isinstance(found, Found) else (found, None)
    plan = Plan(_as_stages(found), example, seen)
    try:
        return checked(model, num_frames, plan)
    except HDFError as refusal:
        raise _Unlike(refusal) from None


def checked(model: nn.Module, num_frames: int, plan: Plan) -> Plan:
    """Compare a plan with what the model gives for its example, and fill in what that shows."""
    targets = targets_of(model, plan.stages)
    if plan.example is None:
        return plan._replace(sizes=[None] * len(targets))
    seen = plan.seen or observe(model, plan.example, plan.stages)
    pairs = zip(plan.stages, targets, strict=True)
    settled = [_settled(stage, target, seen, num_frames) for stage, target in pairs]
    stages, sizes = map(list, zip(*settled, strict=True))
    return Plan(stages, plan.example, seen, sizes)


def _settled(
    stage: Stage, target: nn.Module, seen: Observation, num_frames: int
) -> tuple[Stage, Seen]:
    """Check a stage against one forward, and return it with its T filled in, and T, H, W."""
    outputs = seen.outputs[stage.name]
    refuse_calls(stage.name, len(outputs))
    if stage.name in seen.looping:
        refuse_looping(stage.name, target)
    with at_stage(stage):
        sizes = stage.axes(outputs[0], num_frames).sizes
    _agree(stage, "channels", stage.channels, sizes.c)
    if ("b", "t") in stage.layout.groups:
        return stage, (stage.num_frames or num_frames, sizes.h, sizes.w)
    _agree(stage, "num_frames", stage.num_frames or sizes.t, sizes.t)
    return replace(stage, num_frames=sizes.t), (sizes.t, sizes.h, sizes.w)


def _agree(stage: Stage, field: str, declared: int, found: int) -> None:
    if declared != found:
        raise HDFError(
            f"{field} of stage {stage.name!r}",
            f"{found}, as the module gives",
            declared,
            f"write {field}={found}",
        )
