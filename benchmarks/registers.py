"""Registers, shared memory and spills of the kernels: python -m benchmarks.registers.

Compiled ahead of time for GPUs that need not be there, as they are specialised at the paper's
shapes; writes benchmarks/results/kernels_registers.md.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.markdown import table
from hdf_modules import DistributionalAttention
from hdf_modules.attention.kernels import launch

SHAPES = [(32, 24, 16, 28, 28), (32, 48, 16, 14, 14), (32, 96, 16, 7, 7), (8, 24, 16, 56, 56)]
CAPABILITIES = (80, 90)
OUTPUT = Path(__file__).parent / "results" / "kernels_registers.md"

_TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
}
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


class Usage(NamedTuple):
    """What a program of a kernel takes: registers of a thread, bytes of shared and spilt memory."""

    registers: int
    shared: int
    spilt: int


def launches(shape: tuple[int, ...], dtype: torch.dtype) -> list[tuple[Any, ...]]:
    """Arguments of the launches of forward and backward at a shape; nothing is launched."""
    module, x = DistributionalAttention(shape[1], shape[2]), torch.empty(shape, dtype=dtype)
    axes, weights = module.layout.bind(x, shape[2]), module._weights(x)
    assert weights is not None  # noqa: S101 (for the type checker)
    found: list[tuple[Any, ...]] = []
    with mock.patch.object(launch, "start", lambda *call: found.append(call)):
        _, kept = launch.forward(x, axes, weights, module.options)
        launch.backward(x, x, axes, weights, module.options, kept)
    return found


def usage(launched: tuple[Any, ...], capability: int) -> Usage:
    """Compile what was launched."""
    kernel, _, arguments, constants = launched
    options = {name: constants[name] for name in constants if name not in kernel.arg_names}
    arguments = (*arguments, *(constants[name] for name in kernel.arg_names[len(arguments) :]))
    signature: dict[str, Any] = {}
    fixed: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for index, (name, value) in enumerate(zip(kernel.arg_names, arguments, strict=True)):
        constant = name in constants
        signature[name] = _specialised(value, (index,), constant, fixed, attributes)
    source = ASTSource(kernel, signature, fixed, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, stack, _, local = _resources(compiled.asm["cubin"])
    return Usage(registers, compiled.metadata.shared, stack + local)


def _specialised(
    value: Any, path: tuple[int, ...], constant: bool, fixed: Any, attributes: Any
) -> Any:
    """Type of an argument as the compiler takes it when it is launched."""
    if isinstance(value, tuple):
        parts = [
            _specialised(part, (*path, i), False, fixed, attributes) for i, part in enumerate(value)
        ]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, Tensor):
        attributes[path] = [["tt.divisibility", 16]]
        return _TYPES[value.dtype]
    if constant or value is None or value == 1:
        fixed[path] = value
        return "constexpr"
    if value % 16 == 0:
        attributes[path] = [["tt.divisibility", 16]]
    return "i32"


def _resources(cubin: bytes) -> tuple[int, ...]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
    found = _USAGE.search(said)
    assert found is not None, said  # noqa: S101
    return tuple(map(int, found.groups()))


def rows() -> Iterator[list[str]]:
    """Lines of the table."""
    for capability in CAPABILITIES:
        for shape in SHAPES:
            for launched in launches(shape, torch.float32):
                found = usage(launched, capability)
                name = launched[0].__name__
                yield [f"sm_{capability}", "×".join(map(str, shape)), name, *map(str, found)]


def main() -> None:
    head = ["GPU", "shape", "kernel", "registers", "shared memory (bytes)", "spilt (bytes)"]
    lines = [
        "# What the kernels of attention take",
        "",
        f"Triton {triton.__version__}, float32: `python -m benchmarks.registers`.",
        "",
        *table(head, rows(), text=(0, 1, 2)),
    ]
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
