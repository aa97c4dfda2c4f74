"""Checkpoints, resuming and several processes: whatever the path, the same bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from examples.train import checkpoint
from examples.train.run import main
from hdf_modules import HDFError
from tests.support.runs import SMALL

RUNS = ("whole", "parts")
ROOT = Path(__file__).parents[2]
ADVERSARIAL = "DistributionalAttention(perturbation='adversarial')"
SHORT = [*SMALL, "--epochs", "2", "--val-fraction", "0.2"]


def run(output: Path, *more: str) -> dict:
    main(["--output", str(output), *SHORT, *more])
    return checkpoint.load(output / "last.pt")


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    else:
        assert one == other or (one != one and other != other)


@pytest.mark.parametrize(
    "more",
    [
        ["--weighting", "GroupDRO(0.1)", "--attention", ADVERSARIAL],
        ["--rho", "0", "--amp", "--clip-grad", "1"],
    ],
    ids=["sam-group-adversarial", "amp-clipped"],
)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, more):
    whole = run(tmp_path / "whole", *more)
    run(tmp_path / "parts", *more, "--stop-after", "1")
    torch.manual_seed(99)  # whatever happened in between
    parts = run(tmp_path / "parts", *more, "--resume")
    for state in (whole, parts):
        del state["options"]
    assert_same(whole, parts)
    results = [
        json.loads((tmp_path / name / "run.json").read_text()) for name in ("whole", "parts")
    ]
    assert results[0]["test"] == results[1]["test"]


def test_resuming_with_other_options_is_refused(tmp_path):
    run(tmp_path, "--stop-after", "1", "--attention", "none")
    with pytest.raises(HDFError, match=r"resume: repeat the .*expected the options .*found lr=0.5"):
        run(tmp_path, "--resume", "--attention", "none", "--lr", "0.5")


def test_resuming_nothing_says_so(tmp_path):
    with pytest.raises(HDFError, match=r"train first, .*a checkpoint, found no file .*last.pt"):
        run(tmp_path, "--resume")


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save({"epoch": 1}, path)

    def half(state, file):
        file.write(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save({"epoch": 2}, path)
    monkeypatch.undo()
    assert checkpoint.load(path) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


class Payload:
    """What unpickling must never build."""


def test_a_checkpoint_cannot_run_code(tmp_path):
    torch.save({"model": Payload()}, tmp_path / "last.pt")
    with pytest.raises(HDFError, match="a checkpoint that loads"):
        checkpoint.load(tmp_path / "last.pt")


def test_torchrun_trains_on_two_processes(tmp_path):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    command += ["-m", "examples.train", "--output", str(tmp_path), *SHORT]
    command += ["--batch-size", "6", "--weighting", "kl"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for more in (["--stop-after", "1"], ["--resume"]):
        done = subprocess.run(
            command + more,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Report") == 1
    state = checkpoint.load(tmp_path / "last.pt")
    assert len(state["random"]) == 2
    result = json.loads((tmp_path / "run.json").read_text())
    assert len(result["test"]["labels"]) == 8
    assert len(result["epochs"]) == 2
