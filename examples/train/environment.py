"""What a run ran on, for the foot of its report."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

import hdf_modules
from examples.train import distributed


def describe(device: torch.device) -> dict[str, str]:
    """Device, processes and versions; nothing that names the machine or its user."""
    threads = f"{platform.machine()} processor, threads: {torch.get_num_threads()}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else threads
    found = {
        "device": name,
        "processes": str(distributed.world_size()),
        "system": platform.system(),
        "Python": platform.python_version(),
        "hdf-modules": hdf_modules.__version__,
    }
    packages = ("torch", "torchvision", "timm")
    return found | {package: installed(package) or "not installed" for package in packages}


def installed(package: str) -> str | None:
    """The version of a package, if there is one."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
