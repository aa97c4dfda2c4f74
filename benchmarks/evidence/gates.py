"""Do the gates look at the clip: what explains them, whether they follow it, what they are worth.

Hooks on the two branches of every attached module catch its gates, or put others in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.evidence.clips import Pool
from examples.train.data.clips import sample_frames
from hdf_modules import DistributionalAttention

BRANCHES = ("temporal", "frequency")
Caught = dict[str, Tensor]
Asked = Callable[[Pool], float]


def looked(model: nn.Module, ask: Asked, tests: dict[str, Pool], frames: int) -> dict[str, Any]:
    """Measure every gate of a trained model over test clips.

    Args:
        model: with attention attached.
        ask: from a pool to the model's UAR on it, which runs the model over the whole pool.
        tests: pools by name; the gates of the first are explained.
        frames: that the model sees of a clip.

    Returns:
        By gate ("temporal 1" is that of the first module): its standard deviation, `shares` of its
        variance in percent, how a changed clip's gate correlates, and under ``loss`` by how much
        the UAR falls where the gate's mean over the clips replaces it; of temporal gates,
        ``inside`` has the shares of what the branch computes on its way. "temporal all" and
        "frequency all" are of all modules at once.
    """
    tests = {name: seen(pool, frames) for name, pool in tests.items()}
    uar, caught, within = {}, {}, {}
    for name, pool in tests.items():
        with catching(model) as caught[name], steps(model) as within[name]:
            uar[name] = ask(pool)
    gates, inside = caught[next(iter(tests))], within[next(iter(tests))]
    found: dict[str, dict[str, Any]] = {
        name: {"deviation": round(float(gate.std()), 4), **shares(gate.flatten(1))}
        for name, gate in gates.items()
    }
    for name, parts in inside.items():
        found[name]["inside"] = {step: shares(part.flatten(1)) for step, part in parts.items()}
    first = next(iter(tests.values()))
    for change, (of_clip, of_gate, branch) in changes(frames).items():
        with catching(model) as changed:
            ask(replace(first, kept=[of_clip(clip) for clip in first.kept]))
        for name, gate in gates.items():
            if name.startswith(branch):
                found[name][change] = follows(gate, changed[name], of_gate)
    for name in (*gates, *(f"{branch} all" for branch in BRANCHES)):
        mine = gates if name.endswith("all") else {name: None}
        chosen = [each for each in mine if each.startswith(name.split()[0])]
        loss = {}
        for test, pool in tests.items():
            with replacing(model, {each: caught[test][each].mean(0) for each in chosen}):
                loss[test] = round(uar[test] - ask(pool), 2)
        found.setdefault(name, {})["loss"] = loss
    return found


def seen(pool: Pool, frames: int) -> Pool:
    """The frames alone that a model looks at."""
    return replace(pool, kept=[clip[sample_frames(len(clip), frames)] for clip in pool.kept])


def changes(frames: int) -> dict[str, tuple[Callable[..., Any], Callable[..., Any], str]]:
    """Changes of a clip, the same change of its gate, and the branch that might follow it.

    A shifted clip begins with its first frame held; there is nothing of it to compare with.
    """
    order = np.arange(frames)
    by = max(1, 3 * frames // 16)
    late = np.maximum(order - by, 0)
    return {
        "backwards": (lambda clip: clip[::-1], lambda gate: gate.flip(1), "temporal"),
        "shifted": (lambda clip: clip[late], partial(_moved, by=by), "temporal"),
        "mirrored": (lambda clip: clip[:, :, ::-1], lambda gate: gate.flip(2), "frequency"),
    }


def _moved(gate: Tensor, by: int) -> Tensor:
    return torch.cat([torch.full_like(gate[:, :by], torch.nan), gate[:, :-by]], 1)


def shares(gate: Tensor) -> dict[str, float | None]:
    """Two-way analysis of variance of (clips, places), in percent of the whole.

    ``place`` is explained by the frame or position alone, ``clip`` by the clip alone, ``both`` by
    their sum; what is left is what a clip does at a place of its own. A gate that says one thing
    everywhere has no variance to explain: None.
    """
    gate = gate.double()
    whole = (gate - gate.mean()).square().mean()
    if whole < 1e-12:
        return dict.fromkeys(("place", "clip", "both"))
    place, clip = (100 * gate.mean(axis).var(correction=0) / whole for axis in (0, 1))
    parts = {"place": place, "clip": clip, "both": place + clip}
    return {name: round(float(value), 1) for name, value in parts.items()}


def follows(
    gate: Tensor, changed: Tensor, change: Callable[[Tensor], Tensor]
) -> dict[str, float | None]:
    """Correlate a changed clip's gate with the gate changed alike, and with the gate as it was."""
    expected = change(gate)
    known = ~expected.isnan()
    return {
        "follows": correlation(changed[known], expected[known]),
        "stays": correlation(changed[known], gate[known]),
    }


def correlation(one: Tensor, other: Tensor) -> float | None:
    """Pearson's; None where one of them is constant."""
    one, other = (values.double() - values.double().mean() for values in (one, other))
    if min(one.abs().max(), other.abs().max()) < 1e-6:
        return None
    return round(float((one * other).sum() / (one.norm() * other.norm())), 3)


@contextmanager
def catching(model: nn.Module) -> Iterator[Caught]:
    """Every gate over all clips that the model sees meanwhile, by name, when it is over."""
    parts: dict[str, list[Tensor]] = {name: [] for name, _ in branches(model)}

    def keep(_module: nn.Module, _args: Any, gate: Tensor, name: str) -> None:
        parts[name].append(gate.float().cpu())

    found: Caught = {}
    with hooked(model, {name: partial(keep, name=name) for name in parts}):
        yield found
    found |= {name: torch.cat(gates) for name, gates in parts.items()}


@contextmanager
def steps(model: nn.Module) -> Iterator[dict[str, Caught]]:
    """What temporal branches compute on the way to their gates, over all clips: A, I and F.

    Places are frames and bins: (clips, time, bins) or (clips, bins, time).
    """
    parts: dict[str, dict[str, list[Tensor]]] = {}
    found: dict[str, Caught] = {}

    def read(_module: nn.Module, args: Any, name: str) -> None:
        parts[name]["A"].append(args[0].float().cpu())

    def mixed(_module: nn.Module, args: Any, tokens: Tensor, name: str) -> None:
        parts[name]["I"].append(args[0].float().cpu())
        parts[name]["F"].append(tokens.float().cpu())

    placed = []
    for name, branch in branches(model):
        if name.startswith("temporal"):
            parts[name] = {"A": [], "I": [], "F": []}
            mixing: Any = branch.mixing
            placed += [
                branch.register_forward_pre_hook(partial(read, name=name)),
                mixing.register_forward_hook(partial(mixed, name=name)),
            ]
    try:
        yield found
    finally:
        for hook in placed:
            hook.remove()
    found |= {
        name: {step: torch.cat(values) for step, values in steps.items()}
        for name, steps in parts.items()
    }


@contextmanager
def replacing(model: nn.Module, gates: Caught) -> Iterator[None]:
    """Put the same gate in the place of every clip's."""

    def put(_module: nn.Module, _args: Any, gate: Tensor, name: str) -> Tensor:
        return gates[name].to(gate).expand_as(gate)

    with hooked(model, {name: partial(put, name=name) for name in gates}):
        yield


@contextmanager
def hooked(model: nn.Module, hooks: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Forward hooks on branches by name, for a while."""
    placed = [
        branch.register_forward_hook(hooks[name])
        for name, branch in branches(model)
        if name in hooks
    ]
    try:
        yield
    finally:
        for hook in placed:
            hook.remove()


def branches(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Both branches of every module, counted from 1."""
    modules = [m for m in model.modules() if isinstance(m, DistributionalAttention)]
    return [
        (f"{branch} {place}", getattr(module, branch))
        for branch in BRANCHES
        for place, module in enumerate(modules, 1)
    ]
