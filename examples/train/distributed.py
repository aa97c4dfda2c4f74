"""One process or several: torchrun's environment decides."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from hdf_modules import HDFError


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started, if it did."""
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def pick_device(name: str | None) -> torch.device:
    """The named device, else this process's GPU where there is one.

    Raises:
        HDFError: if there is no such device.
    """
    if name or not torch.cuda.is_available():
        return _there(name or "cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _there(name: str) -> torch.device:
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:  # by a torch that is built without, or with
        found = f"{name}: {str(error).splitlines()[0]}"
        raise HDFError("--device", "a device of this machine", found, "leave it out") from error
    return torch.device(name)


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def gather(value: Any) -> list[Any]:
    """The values of all ranks, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
