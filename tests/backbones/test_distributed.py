"""Attached models on two processes, in Lightning and in Accelerate, over four kinds of backbone."""

import copy
from datetime import timedelta

import accelerate
import lightning
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from hdf_modules.backbones import dam_parameters, dam_state_dict
from tests.support.matrix_models import KINDS, attached, clips

WORLD = 2
STEPS = 2


def train(model, batches):
    """SGD on a loss that is a mean, so that ranks' gradients average to that of all clips."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for x in batches:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def sharded(model):
    return fully_shard(model, mesh=init_device_mesh("cpu", (WORLD,)))


def agree_with_one_process(rank, kind, wrap):
    """Attention ends where it ends in one process that sees every rank's clips."""
    torch.manual_seed(0)
    model = attached(kind, "cpu")
    batches = [clips(kind, "cpu", WORLD) for _ in range(STEPS)]
    alone = copy.deepcopy(model)
    train(alone, batches)
    train(wrap(model), [batch.chunk(WORLD)[rank] for batch in batches])
    expected = dam_state_dict(alone)
    for name, value in dam_state_dict(model).items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        torch.testing.assert_close(whole, expected[name], rtol=1e-4, atol=1e-6)


def worker(rank, path):
    dist.init_process_group(
        "gloo",
        init_method=f"file://{path}",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=60),
    )
    torch.set_num_threads(1)
    for kind in KINDS:
        for wrap in (DistributedDataParallel, sharded):
            agree_with_one_process(rank, kind, wrap)
    dist.destroy_process_group()


@pytest.mark.cpu_only
def test_ddp_and_fsdp(tmp_path):
    mp.spawn(worker, (tmp_path / "rendezvous",), nprocs=WORLD)


class Plain(lightning.LightningModule):
    """Nothing but the model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, x, _):
        return self.model(x).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def in_lightning(model, batches, device, folder):
    options = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    options |= {"accelerator": device.type, "devices": 1, "max_epochs": 1}
    trainer = lightning.Trainer(default_root_dir=folder, **options)
    trainer.fit(Plain(model), DataLoader(batches, batch_size=None))
    model.to(device)  # Lightning leaves it on the processor


def in_accelerate(model, batches, device, folder):
    accelerator = accelerate.Accelerator(cpu=device.type == "cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model, optimizer = accelerator.prepare(model, optimizer)
    for x in batches:
        optimizer.zero_grad()
        accelerator.backward(model(x).square().mean())
        optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trained", [in_lightning, in_accelerate])
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*in eval mode")
def test_frameworks_train_as_a_loop_does(kind, trained, device, tmp_path):
    model, batches = attached(kind, device), [clips(kind, device) for _ in range(STEPS)]
    start, alone = copy.deepcopy(dam_state_dict(model)), copy.deepcopy(model)
    train(alone, batches)
    trained(model, batches, device, tmp_path)
    expected = dam_state_dict(alone)
    for name, value in dam_state_dict(model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(expected[name], start[name]) for name in start)
    assert all(isinstance(parameter, nn.Parameter) for parameter in dam_parameters(model))
