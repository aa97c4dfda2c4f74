"""Files of a run that are either whole or not there; checkpoints load without running code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from filelock import FileLock, Timeout

from hdf_modules import HDFError
from hdf_modules.files import whole


def save(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint.

    Raises:
        OSError: of the disk itself, which torch answers with an error of its own.
    """
    with whole(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def forget(folder: Path) -> None:
    """Delete what an earlier run left, so that none of it is taken for the next one's."""
    for name in ("last.pt", "best.pt", "run.json", "report.html"):
        (folder / name).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text; what a path's bytes are, where they are no UTF-8, is escaped."""
    with whole(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Let no other run write to a folder; a killed run leaves no lock, and its halves go.

    Raises:
        HDFError: if another run does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            for half in folder.glob("*.part"):
                half.unlink()
            yield
    except Timeout:
        hint = "wait for it, or name another folder"
        expected = "a folder that no other run writes to"
        raise HDFError("--output", expected, f"one in {folder}", hint) from None


def load(path: Path, *parts: str) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; tensors and plain values only.

    Raises:
        HDFError: if there is none, it is damaged, or holds other things than these parts.
    """
    if not path.is_file():
        raise HDFError("resume", "a checkpoint", f"no file {path}", "train first, or drop --resume")
    try:
        with ZipFile(path) as file:  # torch does not look at the checksums that it writes
            if damaged := file.testzip():
                raise ValueError(f"{damaged} is not what was written")
        state = torch.load(path, map_location="cpu", weights_only=True)
        return state | {part: state[part] for part in parts}
    except Exception as error:
        found = f"{path}: {error!r:.200}"
        hint = "start anew with --overwrite"
        raise HDFError("resume", "a checkpoint that loads", found, hint) from error


def random_state() -> dict[str, Any]:
    """The state of every generator that training draws from in this process."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
