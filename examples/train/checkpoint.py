"""Checkpoints that are either whole or not there, and load without running code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from hdf_modules import HDFError


def save(state: dict[str, Any], path: Path) -> None:
    """Write beside the target, then rename: a crash leaves the old file, never half a new one."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; tensors and plain values only.

    Raises:
        HDFError: if there is none, or it does not load.
    """
    if not path.is_file():
        raise HDFError("resume", "a checkpoint", f"no file {path}", "train first, or drop --resume")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise HDFError("resume", "a checkpoint that loads", str(path), str(error)[:200]) from error


def random_state() -> dict[str, Any]:
    """The state of every generator that training draws from in this process."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
