"""What a measurement was made on, for the head of every record."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import hdf_modules
from examples.train.environment import installed

PACKAGES = (
    "hdf-modules",
    "torch",
    "torchvision",
    "timm",
    "pytorch-metric-learning",
    "pytorch_optimizer",
    "pytorchvideo",
)


def describe() -> dict[str, Any]:
    """Return processor, cores, threads, memory, GPU and versions; nothing that names the host.

    ``threads`` is what this process uses at the time of the call, so call it after setting them.
    """
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := installed(name))},
        "sources": sources(),
    }


def line(found: dict[str, Any]) -> str:
    """Say what `describe` found, for the head of a table."""
    parts = found["versions"] | ({"sources": found["sources"]} if "sources" in found else {})
    versions = ", ".join(f"{name} {number}" for name, number in parts.items())
    threads = f"{found['threads']} thread{'s' * (found['threads'] > 1)}"
    where = found["gpu"] or f"{found['processor']}, {threads}"
    return f"{where}; Python {found['python']}, {versions}."


def missing(name: str, package: str) -> bool:
    """Whether something is left out because its package is not installed, which is said."""
    if find_spec(package) is not None:
        return False
    print(f"{name}: left out, {package} is not installed", flush=True)
    return True


def sources() -> str:
    """Digest of the library's code: between two releases its version says too little."""
    files = Path(hdf_modules.__file__).parent.rglob("*.*")
    return digest(sorted(file for file in files if file.suffix == ".py"))


def digest(files: Iterable[Path]) -> str:
    """Ten hexadecimal digits that change with any byte of the files."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:10]


def _processor() -> str:
    """Return the processor's model; `platform.processor` is often empty on Linux."""
    record = Path("/proc/cpuinfo")
    lines = record.read_text().splitlines() if record.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
