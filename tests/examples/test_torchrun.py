"""The examples as torchrun starts them, on two processes (examples.train: see test_resume)."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_accelerate_on_two_processes(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(ROOT / "examples/accelerate_fit.py"), "--clips", "24", "--size", "16"]
    script += ["--frames", "4", "--batch-size", "4", "--epochs", "2", "--mixed-precision", "bf16"]
    done = subprocess.run(
        [sys.executable, *launcher, *script, "--clip-grad", "1"],
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("epoch ")]
    assert [line.split(":")[0] for line in lines] == ["epoch 1", "epoch 2"]
    assert "nan" not in done.stdout
