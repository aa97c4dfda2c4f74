"""One batch over all processes: gather rows, raise together, share a loss so that DDP is exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from hdf_modules.errors import HDFError
from hdf_modules.loss.pairwise import Split
from hdf_modules.loss.per_sample import Samples


@dataclass(frozen=True)
class Ranks:
    """The processes that form one batch, each with its own number of samples.

    Attributes:
        sizes: samples of each rank.
        rank: this process.
    """

    sizes: tuple[int, ...]
    rank: int

    @property
    def split(self) -> Split:
        """How the pairs of the gathered batch are divided, each rank visiting those of its own."""
        start = sum(self.sizes[: self.rank])
        return Split(slice(start, start + self.sizes[self.rank]), self.gather)

    def gather(self, rows: Tensor) -> Tensor:
        """Concatenate the rows of all ranks in rank order; gradients reach this rank's rows."""
        padded = rows.new_zeros(max(self.sizes), *rows.shape[1:])
        padded[: len(rows)] = rows.detach()
        received = [torch.empty_like(padded) for _ in self.sizes]
        dist.all_gather(received, padded)
        parts = [part[:size] for part, size in zip(received, self.sizes, strict=True)]
        parts[self.rank] = rows
        return torch.cat(parts)

    def gather_samples(self, mine: Samples) -> Samples:
        """Return the samples of all ranks: two or three collectives."""
        numbers = [mine.losses, mine.elements, mine.normalizer]
        ids = {
            name: rows
            for name, rows in (("labels", mine.labels), ("groups", mine.groups))
            if rows is not None and rows.ndim == 1
        }
        columns = self.gather(torch.stack([x.double() for x in (*numbers, *ids.values())], 1)).T
        whole = {name: column.long() for name, column in zip(ids, columns[3:], strict=True)}
        for name, rows in (("labels", mine.labels), ("features", mine.features)):
            if rows is not None and name not in whole:
                whole[name] = self.gather(rows)
        return Samples(*columns[:3].to(mine.losses.dtype), **whole)

    def share(self, total: Tensor) -> Tensor:
        """Return ``total``, in which gradients reach this rank's rows, for DDP to average.

        DDP averages the gradients over the ranks, so each rank's counts world size times, and they
        add up to that of the total. The value is that of the total to the bit, so that no decision
        taken on it differs between ranks.
        """
        part = total * len(self.sizes)
        return total.detach() + (part - part.detach())


def meet(prepare: Callable[[], Samples], device: torch.device) -> tuple[Samples, Ranks]:
    """Prepare the samples on every rank and exchange their numbers, or raise on every rank.

    Args:
        prepare: returns this rank's samples, or raises.
        device: where the collectives run.

    Raises:
        HDFError: on every rank, if any fails or their inputs differ in kind; the rank is named.
    """
    samples, error = None, None
    try:
        samples = prepare()
    except Exception as caught:  # whatever it is, the other ranks must not wait for this one
        error = caught
    table = _exchange([error is not None, *_facts(samples)], device)
    if samples is None or any(row[0] for row in table):
        _raise_everywhere(error)
    if any(row[2:] != table[0][2:] for row in table):
        found = "; ".join(f"rank {rank}: {row[2:]}" for rank, row in enumerate(table))
        expected = "the same [feature width, label width, group ids] on every rank, -1 for none"
        raise HDFError(
            "batch",
            expected,
            found,
            "pass the same arguments on every rank, empty tensors where there are no samples",
        )
    return samples, Ranks(tuple(row[1] for row in table), dist.get_rank())


def _facts(samples: Samples | None) -> list[int]:
    """Return the number of samples, then what has to agree: widths, 0 for ids, -1 for absent."""
    if samples is None:
        return [0, 0, 0, 0]
    parts = samples.features, samples.labels, samples.groups
    widths = [-1 if part is None else (part.shape[1] if part.ndim == 2 else 0) for part in parts]
    return [len(samples.losses), *widths]


def _exchange(facts: list[int], device: torch.device) -> list[list[int]]:
    mine = torch.tensor([int(fact) for fact in facts], device=device)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    return torch.stack(everyone).tolist()


def _raise_everywhere(error: Exception | None) -> NoReturn:
    """Tell all ranks about the errors of some; raise the first, naming the ranks."""
    told: list[tuple[str, str, str, str] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(told, _describe(error))
    failed = [(rank, parts) for rank, parts in enumerate(told) if parts is not None]
    argument, expected, _, hint = failed[0][1]
    found = "; ".join(f"{parts[2]} on rank {rank}" for rank, parts in failed)
    raise HDFError(argument, expected, found, hint) from error


def _describe(error: Exception | None) -> tuple[str, str, str, str] | None:
    if error is None:
        return None
    if isinstance(error, HDFError):
        return error.argument, error.expected, str(error.found), error.hint
    return "base", "a loss on every rank", f"{type(error).__name__}: {error}", ""
