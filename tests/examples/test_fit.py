"""The examples in Lightning and in Accelerate run, alone and on two processes, and learn."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples import accelerate_fit, lightning_fit

ROOT = Path(__file__).parents[2]
SMALL = ["--clips", "48", "--epochs", "1", "--clip-grad", "1"]
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
# Lightning's own: it reads treespecs in an old way, and advises more data workers
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning(tmp_path, precision):
    trainer = lightning_fit.main(
        [*SMALL, "--precision", precision], default_root_dir=tmp_path, **QUIET
    )
    assert trainer.global_step == 3
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert set(metrics) == {"loss", "gradient_norm", "lambda_ce", "val_war"}
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["lambda_ce"] < 1  # g reached the loss


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate(precision):
    loss, war = accelerate_fit.main([*SMALL, "--mixed-precision", precision], cpu=True)
    assert math.isfinite(loss)
    assert 0 <= war <= 100


def test_lightning_learns(tmp_path):
    trainer = lightning_fit.main(["--epochs", "4"], default_root_dir=tmp_path, **QUIET)
    assert trainer.callback_metrics["val_war"] > 50  # guessing gets a fifth right


def test_accelerate_on_two_processes(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [accelerate_fit.__file__, "--clips", "64", "--epochs", "2", "--clip-grad", "1"]
    done = subprocess.run(
        [sys.executable, *launcher, *script, "--mixed-precision", "bf16"],
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
