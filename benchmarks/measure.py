"""How time and memory are measured: interleaved, on inputs that are in no cache."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Case = Callable[[int], Any]
"""What is timed: called with a number that picks one of several equal inputs."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt; the latter at most 32 MiB
_CACHES = 2**26  # bytes; more than the last cache level of common processors and GPUs


def case(work: Callable[..., Any], *arguments: Any) -> Case:
    """The same work at every call."""
    return lambda number: work(*arguments)


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, where it can be told so.

    Else it returns large results to the system and gets them back a page at a time, or not, as the
    heap happens to lie: milliseconds that belong to no case.
    """
    _mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    _mallopt(_M_MMAP_THRESHOLD, 2**25)


def release_memory() -> None:
    """Let freed tensors go back to the system at once, so that a peak is of what is alive.

    By itself glibc raises its threshold as tensors are freed and keeps them in its heap from then
    on: peaks of one and the same call differed by 15 MB.
    """
    _mallopt(_M_MMAP_THRESHOLD, 2**17)  # where it starts


def _mallopt(option: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(option, value)


def copies(x: Tensor) -> list[Tensor]:
    """So many copies of x that going through them finds none in a cache."""
    return [x.clone(memory_format=torch.preserve_format) for _ in range(_CACHES // x.nbytes + 2)]


def interleaved(
    cases: dict[str, Case], device: str, rounds: int, limit: float = math.inf, calls: int = 3
) -> dict[str, list[float]]:
    """Milliseconds of each case: in every round some calls, and one ahead that does not count.

    With one call a round, none is ahead: for whole networks, which fill the caches themselves.

    A run in which the first case is unstable, its spread above ``limit``, is repeated twice.

    Raises:
        RuntimeError: when no run was stable.
    """
    for case in cases.values():
        for number in range(max(2, calls)):
            case(number)
    for _ in range(3):
        times: dict[str, list[float]] = {name: [] for name in cases}
        for start in range(0, rounds * (calls + 1), calls + 1):
            for name in _rotated(list(cases), start // (calls + 1)):
                case = cases[name]
                if calls > 1:
                    case(start)
                for number in range(start + 1, start + 1 + calls):
                    times[name].append(milliseconds(case, number, device))
        if limit == math.inf or spread(times[next(iter(cases))]) <= limit:
            return times
    raise RuntimeError("no stable run in three: something else is using this machine")


def _rotated(names: list[str], places: int) -> list[str]:
    """Another order in each round: what ran before leaves its mark on memory."""
    places %= len(names)
    return names[places:] + names[:places]


def milliseconds(case: Case, number: int, device: str) -> float:
    """Time one call; on a GPU, by its own clock."""
    if device == "cpu":
        begin = time.perf_counter()
        case(number)
        return 1e3 * (time.perf_counter() - begin)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    case(number)
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def spread(times: list[float]) -> float:
    """Interquartile range over the median."""
    quarters = statistics.quantiles(times, n=4)
    return (quarters[2] - quarters[0]) / quarters[1]


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in times.items()}


def ratio(times: dict[str, list[float]], case: str, base: str) -> float:
    """Median over the rounds of the ratio within a round, which slow drifts leave alone."""
    pairs = zip(times[case], times[base], strict=True)
    return statistics.median(a / b for a, b in pairs)


def inference(module: Callable[[Tensor], Any], xs: list[Tensor]) -> Case:
    def run(number: int) -> None:
        with torch.inference_mode():
            module(xs[number % len(xs)])

    return run


def training(module: torch.nn.Module, xs: list[Tensor], needs_input: bool = True) -> Case:
    """Forward and backward, from an upstream gradient that is there already."""
    leaves = [x.detach().requires_grad_(needs_input) for x in xs]
    parameters = [p for p in module.parameters() if p.requires_grad]
    with torch.no_grad():
        upstream = [torch.ones_like(module(x)) for x in xs]

    def run(number: int) -> None:
        x, ones = leaves[number % len(xs)], upstream[number % len(xs)]
        inputs = [x, *parameters] if needs_input else parameters
        torch.autograd.grad(module(x), inputs, ones, allow_unused=True)

    return run


def captured(case: Case, count: int) -> Case:
    """What is left when CUDA graphs replay the launches, one graph for each of the inputs."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # warm-up, as CUDA graphs want it
        for number in range(max(3, count)):
            case(number)
    torch.cuda.current_stream().wait_stream(aside)
    graphs = []
    for number in range(count):
        graphs.append(torch.cuda.CUDAGraph())
        with torch.cuda.graph(graphs[-1]):
            case(number)

    def replay(number: int) -> None:
        graphs[number % count].replay()

    return replay


@contextmanager
def without_kernels() -> Iterator[None]:
    """Let the equations compute attention; little is done, as it is timed with what is inside."""
    before = os.environ.get("HDF_KERNELS")
    os.environ["HDF_KERNELS"] = "reference"
    try:
        yield
    finally:
        del os.environ["HDF_KERNELS"]
        if before is not None:
            os.environ["HDF_KERNELS"] = before


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


def peak(case: Case, device: str) -> float:
    """Megabytes by which the memory in use rises during one call; on a processor, Linux alone."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        case(0)
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # give back what earlier calls left in the heap
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    case(0)
    return (_resident("VmHWM") - before) / 1e6


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def in_a_fresh_process(code: str) -> float:
    """Return the number that the code prints."""
    root = Path(__file__).parents[1]
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True, cwd=root
    )
    return float(done.stdout)
