"""Kernels for GPUs, without one: numbers by Triton's interpreter, registers by its compiler."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hdf_modules import DistributionalAttention, HDFError
from hdf_modules.attention import choice, kernels_used

try:
    VERSION = tuple(map(int, version("triton").split(".")[:2]))
except PackageNotFoundError:  # it is made for Linux
    VERSION = (0, 0)
written_for = pytest.mark.skipif(VERSION < choice.OLDEST, reason="there is no such Triton here")
INTERPRETED = Path(__file__).with_name("interpreted_kernels.py")
SHAPES = [(32, 24, 16, 28, 28), (32, 48, 16, 14, 14), (32, 96, 16, 7, 7), (8, 24, 16, 56, 56)]


@written_for
@pytest.mark.cpu_only  # on a GPU nothing is interpreted, and the file is run as it is
def test_interpreted():
    options = ["-q", "-p", "no:cacheprovider", "-n", "2"]
    command = [sys.executable, "-m", "pytest", *options, str(INTERPRETED)]
    run = subprocess.run(
        command,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@written_for
@pytest.mark.cpu_only  # this and the next compile for GPUs that need not be there
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("capability", [80, 90])
def test_no_register_is_spilt(capability, shape):
    from benchmarks.registers import launches, usage  # noqa: PLC0415 (imports the compiler)

    found = {call[0].__name__: usage(call, capability) for call in launches(shape, torch.float32)}
    assert len(found) == 8
    assert not {name: used for name, used in found.items() if used.spilt}


@written_for
@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("shape", "dtype"),
    # sizes of one are constants of the programs, not numbers
    [(SHAPES[2], torch.bfloat16), ((1, 3, 1, 1, 1), torch.float16)],
    ids=["usual", "ones"],
)
def test_half_precision_compiles(shape, dtype):
    from benchmarks.registers import launches, usage  # noqa: PLC0415 (imports the compiler)

    for call in launches(shape, dtype):
        assert usage(call, 90).spilt == 0, call[0].__name__


@written_for
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [*SHAPES, (8, 96, 16, 14, 14), (2, 24, 16, 28, 28)], ids=str)
def test_what_is_kept_for_backward_is_small(shape, dtype, device, monkeypatch):
    """Beside x, which every multiplication keeps; nothing is launched, so sizes alone count."""
    from benchmarks.measure import saved_bytes  # noqa: PLC0415 (beside what imports the compiler)
    from hdf_modules.attention.kernels import launch  # noqa: PLC0415 (imports the compiler)

    monkeypatch.setenv("HDF_KERNELS", "gpu")
    monkeypatch.setattr(choice, "chosen", lambda *_: True)
    monkeypatch.setattr(launch, "start", lambda *_: None)
    module = DistributionalAttention(shape[1], shape[2], device=device)
    x = torch.empty(shape, dtype=dtype, device=device)
    kept = saved_bytes(module, x) / x.nbytes - 1
    assert 0 < kept <= 0.05


@written_for
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_launches_and_the_bytes_they_move(shape):
    from benchmarks.attention.counts import launches  # noqa: PLC0415 (imports the compiler)

    found, size = launches(shape, torch.float32), 4 * torch.Size(shape).numel()
    moved = [call["read"] + call["written"] for call in found]
    assert len(found) == 8
    assert sum(moved[:4]) <= 1.3 * 3 * size
    assert sum(moved[4:]) <= 1.4 * 4 * size


@pytest.mark.cpu_only
def test_an_older_triton_is_named(monkeypatch):
    """Whatever is installed, or where nothing is: what follows the import is not reached."""
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.2.0"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(choice, "_known", {})
    with pytest.warns(RuntimeWarning, match=r"Triton 3\.2\.0 is older than 3\.3"):
        path, _ = kernels_used(torch.ones(1))
    assert path == "reference"


@pytest.mark.cpu_only
def test_processors_have_no_kernels(monkeypatch):
    x = torch.randn(1, 3, 2, 4, 4)
    assert kernels_used(x) == ("reference", "there are no kernels for cpu")
    monkeypatch.setenv("HDF_KERNELS", "gpu")
    with pytest.raises(HDFError, match=r"unset it .*found there are no kernels for cpu"):
        DistributionalAttention(3, 2)(x)
