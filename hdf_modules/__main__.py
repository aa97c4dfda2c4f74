"""``python -m hdf_modules``: what is installed, and what computes attention where."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

import hdf_modules
from hdf_modules.attention import kernels_used


def devices() -> Iterator[str]:
    """Name the devices that torch can use."""
    yield f"cpu: {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    for index in range(torch.cuda.device_count()):
        yield f"cuda:{index}: {torch.cuda.get_device_name(index)}"
    if torch.backends.mps.is_available():
        yield "mps"


def main() -> None:
    """Print it, and run attention once on every device."""
    print(f"hdf-modules {hdf_modules.__version__}, Python {platform.python_version()}")
    for name in ("torch", "einops", "timm"):
        try:
            print(f"  {name} {version(name)}")
        except PackageNotFoundError:
            print(f"  {name} is not installed")
    print("Attention is computed by operations of torch (reference) or by kernels (gpu):")
    for device in devices():
        name = device.partition(": ")[0]
        attention = hdf_modules.DistributionalAttention(8, 4, device=name)
        x = torch.randn(1, 8, 4, 7, 7, device=name)
        path, why = kernels_used(x)
        print(f"  {device}: {path}, because {why}", end="; ")
        try:
            attention(x).sum().backward()
            print("forward and backward work")
        except hdf_modules.HDFError as error:  # HDF_KERNELS=gpu where they do not run
            print(error)


if __name__ == "__main__":
    main()
