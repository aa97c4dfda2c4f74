"""The contrastive loss: against its peer, in tiles, and as one rank of several."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import missing
from benchmarks.measure import case, in_a_fresh_process, interleaved, medians, peak, release_memory
from benchmarks.record import Rows
from hdf_modules.functional import robust_contrastive_loss
from hdf_modules.loss.contrastive import Kernel, contrastive_term, normalize
from hdf_modules.loss.pairwise import Split, tiled_denominators

NAMES = ("supcon", "dense", "tiles")
PEER = "supcon", "pytorch_metric_learning"
Loss = Callable[[Tensor, Tensor], Tensor]


def inputs(n: int, dimensions: int, device: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    features = torch.randn(n, dimensions).to(device).requires_grad_()
    return features, torch.randint(7, (n,)).to(device)


def contrastive(name: str) -> Loss:
    if name == "supcon":
        from pytorch_metric_learning.losses import SupConLoss  # noqa: PLC0415

        return SupConLoss(temperature=0.1)
    block_size = None if name == "dense" else 512
    return lambda features, target: robust_contrastive_loss(features, target, block_size=block_size)


def step(loss: Loss, features: Tensor, target: Tensor) -> None:
    features.grad = None
    loss(features, target).backward()


def own_peak(name: str, n: int, dimensions: int, device: str) -> float:
    """MB beyond the inputs after a small batch; on a processor, in a process of its own."""
    if device == "cuda":  # where the allocator knows what is alive
        return warm_peak(name, n, dimensions, device)
    arguments = f"{name!r}, {n}, {dimensions}, {device!r}"
    module = contrastive.__module__
    return in_a_fresh_process(f"from {module} import print_peak; print_peak({arguments})")


def print_peak(name: str, n: int, dimensions: int, device: str) -> None:
    torch.set_num_threads(1)
    release_memory()
    print(warm_peak(name, n, dimensions, device))


def warm_peak(name: str, n: int, dimensions: int, device: str) -> float:
    loss = contrastive(name)
    step(loss, *inputs(64, dimensions, device))
    return peak(case(step, loss, *inputs(n, dimensions, device)), device)


def contrastive_rows(options: Namespace) -> Iterator[dict[str, Any]]:
    """One row a size; a peer that is not installed is left out."""
    left_out = PEER[:1] if missing(*PEER) else ()
    names = [name for name in NAMES if name not in left_out]
    for n in options.sizes:
        given = inputs(n, 128, options.device)
        cases = {name: case(step, contrastive(name), *given) for name in names}
        rounds = max(5, min(100, 2**15 // n))
        ms = medians(interleaved(cases, options.device, rounds, calls=1))
        mb = {name: own_peak(name, n, 128, options.device) for name in names}
        yield {"n": n} | {name: {"ms": ms[name], "mb": mb[name]} for name in names}


def memory_rows(options: Namespace) -> Iterator[dict[str, Any]]:
    for n in options.memory_sizes:
        yield {"n": n, "mb": own_peak("tiles", n, 256, options.device)}


def rank_rows(options: Namespace) -> Rows:
    features, target = inputs(options.rank_size, 128, options.device)
    kernel = Kernel(0.1, 0.2)
    everything = tiled_denominators(normalize(features.detach()), features[:0], kernel, 512)

    def share(count: int) -> Loss:
        split = Split(slice(0, len(features) // count), lambda own: everything.clone())

        def loss(features: Tensor, target: Tensor) -> Tensor:
            return contrastive_term(
                normalize(features), target, kernel, block_size=512, split=split
            )

        return loss

    cases = {str(count): case(step, share(count), features, target) for count in (1, 2, 4, 8)}
    ms = medians(interleaved(cases, options.device, 7, calls=1))
    return [{"ranks": int(count), "ms": spent} for count, spent in ms.items()]
