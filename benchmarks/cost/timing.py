"""Interleaved timing: every case in every round, each from cold caches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Case = Callable[[], Any]
_FLUSH_BYTES = 2**26  # more than the last cache level of common processors and GPUs


def interleaved(
    cases: dict[str, Case], device: str, rounds: int, limit: float, warm_up: int = 3
) -> dict[str, list[float]]:
    """Milliseconds of each case in each round.

    Before a measurement, memory larger than the caches is overwritten: in a network, other layers
    run between two uses of the same tensor. A run in which the first case is unstable, its spread
    above ``limit``, is repeated twice.

    Raises:
        RuntimeError: when no run was stable.
    """
    scratch = torch.empty(_FLUSH_BYTES // 4, device=device)
    for case in cases.values():
        for _ in range(warm_up):
            case()
    for _ in range(3):
        times: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(rounds):
            for name, case in cases.items():
                scratch.zero_()
                times[name].append(milliseconds(case, device))
        if spread(times[next(iter(cases))]) <= limit:
            return times
    raise RuntimeError("no stable run in three: something else is using this machine")


def milliseconds(case: Case, device: str) -> float:
    """Time one call; on a GPU, by its own clock."""
    if device == "cpu":
        begin = time.perf_counter()
        case()
        return 1e3 * (time.perf_counter() - begin)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    case()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def spread(times: list[float]) -> float:
    """Interquartile range over the median."""
    quarters = statistics.quantiles(times, n=4)
    return (quarters[2] - quarters[0]) / quarters[1]


def ratio(times: dict[str, list[float]], case: str, base: str) -> float:
    """Median over the rounds of the ratio within a round, which slow drifts leave alone."""
    pairs = zip(times[case], times[base], strict=True)
    return statistics.median(a / b for a, b in pairs)


def inference(module: Callable[[Tensor], Any], x: Tensor) -> Case:
    def run() -> None:
        with torch.inference_mode():
            module(x)

    return run


def training(module: torch.nn.Module, x: Tensor, needs_input: bool = True) -> Case:
    """Forward and backward; an upstream gradient of ones costs no loss function."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_(needs_input)
    leaves = [*[x] * needs_input, *(p for p in module.parameters() if p.requires_grad)]
    with torch.no_grad():
        upstream = torch.ones_like(module(x))

    def run() -> None:
        torch.autograd.grad(module(x), leaves, upstream, allow_unused=True)

    return run


def saved_bytes(module: torch.nn.Module, x: Tensor) -> int:
    """Bytes that forward keeps for backward, parameters left out, shared memory counted once."""
    x = x.detach().requires_grad_()
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = module(x)  # alive while the hooks run, so that no address is used twice
    del kept
    return sum(found.values())
