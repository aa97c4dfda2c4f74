"""SAM on real processes: DDP with and without no_sync, accumulation, overflow, and FSDP2."""

import copy
from contextlib import nullcontext
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.amp import GradScaler
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from hdf_modules import SAM, HeterogeneityAwareLoss, with_features
from hdf_modules.loss import KL, GradientNorm
from tests.support.reference.sam import norm, sam_gradient

pytestmark = pytest.mark.cpu_only  # gloo's processes

RHO = 0.3


class Net(nn.Module):
    def __init__(self, normalised=False):
        super().__init__()
        self.body = nn.Linear(5, 7)
        self.norm = nn.BatchNorm1d(7) if normalised else nn.Identity()
        self.drop = nn.Dropout(0.5 if normalised else 0.0)
        self.head = nn.Linear(7, 3)

    def forward(self, x):
        return self.head(self.drop(torch.tanh(self.norm(self.body(x)))))


def sgd(net, **options):
    return SAM(torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9), RHO, **options)


def loss_of(model, x, y):
    return nn.functional.cross_entropy(model(x), y)


def data(size, dtype=torch.float64):
    return torch.randn(size, 5, dtype=dtype), torch.randint(3, (size,))


def own(rank, world, *tensors):
    return tuple(tensor.chunk(world)[rank] for tensor in tensors)


def reference(model, x, y):
    """The SAM gradient of one process on (x, y), and g."""
    names = [name for name, _ in model.named_parameters()]

    def loss(*weights):
        weights = dict(zip(names, weights, strict=True))
        return nn.functional.cross_entropy(torch.func.functional_call(model, weights, (x,)), y)

    return sam_gradient(loss, [(list(model.parameters()), RHO, False)])


def mean(gradients):
    return [torch.stack(each).mean(0) for each in zip(*gradients, strict=True)]


def assert_close(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def grads(model):
    return [p.grad for p in model.parameters()]


def same_on_all_ranks(*values):
    mine = torch.stack([torch.as_tensor(value, dtype=torch.float64) for value in values])
    first = mine.clone()
    dist.broadcast(first, 0)
    assert torch.equal(mine, first), (mine, first)


def uneven_batches_equal_one_process(rank, world):
    for adaptive in (False, True):
        alone = with_features(Net().double())
        parallel = DistributedDataParallel(copy.deepcopy(alone))
        pairs = []
        for model, gather in ((alone, False), (parallel, True)):
            options = {"weighting": KL(0.5), "balance": GradientNorm(smoothing=0.5)}
            criterion = HeterogeneityAwareLoss(**options, gather=gather).double()
            pairs.append((model, criterion, sgd(model, adaptive=adaptive)))
        for _ in range(3):
            x, y = data(8)
            sizes = torch.tensor([3, 0, 5]) if world > 2 else torch.tensor([3, 5])
            start, size = int(sizes[:rank].sum()), int(sizes[rank])
            parts = (x, y), (x[start : start + size], y[start : start + size])
            for (model, criterion, sam), (a, b) in zip(pairs, parts, strict=True):
                criterion(*swap(model(a), b)).backward()
                with sam.ascend(criterion):
                    criterion(*swap(model(a), b)).backward()
                sam.step()
                sam.zero_grad()
        (_, one, first), (_, many, second) = pairs
        assert second.grad_norm == pytest.approx(first.grad_norm, rel=1e-10)
        assert float(many.balance.lambda_ce) == pytest.approx(float(one.balance.lambda_ce), 1e-10)
        same_on_all_ranks(second.grad_norm, many.balance.lambda_ce, many.balance.lambda_sc)
        assert_close(parallel.parameters(), alone.parameters())


def swap(outputs, target):
    logits, features = outputs
    return logits, target, features


def own_ascent_under_no_sync(rank, world):
    model = DistributedDataParallel(Net().double())
    criterion = HeterogeneityAwareLoss(gather=False).double()
    x, y = data(4 * world)
    shares = [reference(model.module, *own(r, world, x, y)) for r in range(world)]
    sam, (a, b) = sgd(model), own(rank, world, x, y)
    with model.no_sync():
        loss_of(model, a, b).backward()
    with sam.ascend(criterion):
        loss_of(model, a, b).backward()
    assert_close(grads(model), mean([gradient for gradient, _ in shares]))
    assert sam.grad_norm == pytest.approx(sum(g for _, g in shares) / world, rel=1e-12)
    same_on_all_ranks(sam.grad_norm, criterion.balance.lambda_ce, criterion.balance.lambda_sc)


def running_statistics_and_dropout(rank, world):
    for first_pass_synced in (True, False):
        model = DistributedDataParallel(Net(normalised=True))
        sam = sgd(model, model=model)
        masks = []
        model.module.drop.register_forward_hook(lambda m, args, out, kept=masks: kept.append(out))
        model.module.drop.register_forward_pre_hook(lambda m, args: (args[0] * 0 + 1,))
        torch.manual_seed(rank)
        for step in range(3):
            x, y = data(6, torch.float32)
            with nullcontext() if first_pass_synced else model.no_sync():
                loss_of(model, x, y).backward()
            once = [buffer.clone() for buffer in model.buffers()]
            with sam.ascend():
                loss_of(model, x, y).backward()
            assert all(torch.equal(*pair) for pair in zip(once, model.buffers(), strict=True))
            assert int(model.module.norm.num_batches_tracked) == step + 1
            assert torch.equal(masks[-1], masks[-2])
            sam.step()
            sam.zero_grad()
        same_on_all_ranks(*(p.detach().sum() for p in model.parameters()))
        torch.manual_seed(0)


def exact_accumulation_equals_the_large_batch(rank, world):
    model = DistributedDataParallel(Net().double())
    x, y = data(8 * world)
    expected, g = reference(model.module, x, y)
    sam, parts = sgd(model), list(zip(*(t.split(2) for t in own(rank, world, x, y)), strict=True))

    def accumulate():
        for i, part in enumerate(parts):
            with nullcontext() if i == len(parts) - 1 else model.no_sync():
                (loss_of(model, *part) / len(parts)).backward()

    accumulate()
    with sam.ascend():
        accumulate()
    assert_close(grads(model), expected)
    assert sam.grad_norm == pytest.approx(g, rel=1e-12)


def micro_batches_have_their_own_ascent(rank, world):
    for bucket_view in (False, True):
        for synced in (False, True):
            net = Net().double()
            model = DistributedDataParallel(net, gradient_as_bucket_view=bucket_view)
            sam, parts = sgd(model), [data(2 * world) for _ in range(3)]
            shares = [[own(r, world, *part) for r in range(world)] for part in parts]
            each = parts if synced else [share for part in shares for share in part]
            expected = mean([reference(net, *batch)[0] for batch in each])
            for i, part in enumerate(parts):
                a, b = own(rank, world, *part)
                with sam.micro_batch():
                    with nullcontext() if synced else model.no_sync():
                        (loss_of(model, a, b) / 3).backward()
                    last = synced or i == 2
                    with sam.ascend(), nullcontext() if last else model.no_sync():
                        (loss_of(model, a, b) / 3).backward()
            assert_close(grads(model), expected)


def overflow_on_one_rank_skips_everywhere(rank, world):
    model = DistributedDataParallel(Net().double())
    sam, scaler = sgd(model), GradScaler("cpu", init_scale=64.0)
    for bad in ((True, False), (False, True), (False, False)):
        before, scale = copy.deepcopy(model.state_dict()), scaler.get_scale()
        x, y = data(4)
        for second in (False, True):
            overflows = bad[second] and rank == world - 1
            context = sam.ascend(scaler=scaler) if second else model.no_sync()
            with context:
                loss = loss_of(model, x, y)
                scaler.scale(loss * torch.inf if overflows else loss).backward()
        scaler.step(sam)
        scaler.update()
        sam.zero_grad()
        assert scaler.get_scale() == (scale / 2 if any(bad) else scale)
        stayed = [torch.equal(before[name], p) for name, p in model.state_dict().items()]
        assert all(stayed) == any(bad)
        same_on_all_ranks(*(p.detach().sum() for p in model.parameters()))


def plain_steps_in_between(rank, world):
    model = DistributedDataParallel(Net().double())
    sam, due = sgd(model, every=3), []
    x, y = own(rank, world, *data(4 * world))

    def closure():
        sam.zero_grad()
        loss = loss_of(model, x, y)
        loss.backward()
        return loss

    for _ in range(5):
        due.append(sam.due)
        sam.step(closure)
    assert due == [True, False, False, True, False]
    same_on_all_ranks(*(p.detach().sum() for p in model.parameters()))


def sharded(world, whole=True, dtype=torch.float64):
    model = Net().to(dtype)
    alone, mesh = copy.deepcopy(model), init_device_mesh("cpu", (world,))
    fully_shard(model.body, mesh=mesh)
    return (fully_shard(model, mesh=mesh) if whole else model), alone


def radii(model):
    groups = [{"params": model.body.parameters(), "rho": 0.7}, {"params": model.head.parameters()}]
    return [group | {"adaptive": bool(i)} for i, group in enumerate(groups)]


def fsdp_equals_one_process(rank, world):
    for whole in (True, False):  # sharded throughout, and next to ordinary parameters
        for foreach in (True, False):
            model, alone = sharded(world, whole)
            sams = [
                SAM(torch.optim.AdamW(radii(net), lr=0.05, foreach=foreach and whole), RHO)
                for net in (model, alone)
            ]
            for _ in range(3):
                x, y = data(4 * world)
                parts = own(rank, world, x, y) if whole else (x, y), (x, y)
                for net, sam, part in zip((model, alone), sams, parts, strict=True):
                    before = [p.detach().clone() for p in net.parameters()]
                    loss_of(net, *part).backward()
                    with sam.ascend():
                        loss_of(net, *part).backward()
                    assert all(torch.equal(*p) for p in zip(before, net.parameters(), strict=True))
                    if whole:
                        nn.utils.clip_grad_norm_(net.parameters(), 0.1)
                    sam.step()
                    sam.zero_grad()
                assert sams[0].grad_norm == pytest.approx(sams[1].grad_norm, rel=1e-12)
            same_on_all_ranks(sams[0].grad_norm)
            full = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
            assert_close(full, alone.parameters())


def fsdp_half_precision_norm(rank, world):
    model, _ = sharded(world, dtype=torch.bfloat16)
    loss_of(model, *data(4, torch.bfloat16)).backward()
    expected = norm([p.grad.full_tensor() for p in model.parameters()])
    sam = sgd(model)
    with sam.ascend():
        pass
    assert sam.grad_norm == pytest.approx(expected, rel=1e-6)


def fsdp_exception_restores_what_was_gathered(rank, world):
    model, alone = sharded(world)
    sam, (x, y) = sgd(model, model=model), data(4)
    loss_of(model, x, y).backward()
    with pytest.raises(RuntimeError, match="between the passes"), sam.ascend():
        fail_after(model(x))
    torch.testing.assert_close(model(x), alone(x), rtol=1e-12, atol=1e-12)
    model.reshard()


def fail_after(_):
    raise RuntimeError("between the passes")


def fsdp_overflow_and_checkpoint(rank, world):
    model, _ = sharded(world)
    sam, scaler = sgd(model, every=2), GradScaler("cpu", init_scale=8.0)
    get_state_dict(model, sam)  # takes a step at learning rate zero to make the state
    assert sam.due
    for bad, scale in (((1, 0), 4.0), ((0, 1), 2.0), ((0, 0), 2.0)):
        x, y = data(4)
        before = [p.to_local().clone() for p in model.parameters()]
        for second in (False, True):
            factor = torch.inf if bad[second] and rank == 0 else 1.0
            with sam.ascend(scaler=scaler) if second else nullcontext():
                scaler.scale(loss_of(model, x, y) * factor).backward()
        scaler.step(sam)
        scaler.update()
        sam.zero_grad()
        assert scaler.get_scale() == scale
        stayed = [
            torch.equal(a, p.to_local()) for a, p in zip(before, model.parameters(), strict=True)
        ]
        assert all(stayed) == any(bad)
    weights, state = copy.deepcopy(get_state_dict(model, sam))
    other = sgd(model, every=2)
    set_state_dict(model, other, model_state_dict=weights, optim_state_dict=state)
    assert not other.due
    for p in model.parameters():
        momentum = other.state[p]["momentum_buffer"].to_local()
        assert torch.equal(momentum, sam.state[p]["momentum_buffer"].to_local())


DDP = (
    uneven_batches_equal_one_process,
    own_ascent_under_no_sync,
    running_statistics_and_dropout,
    exact_accumulation_equals_the_large_batch,
    micro_batches_have_their_own_ascent,
    overflow_on_one_rank_skips_everywhere,
    plain_steps_in_between,
)
FSDP = (
    fsdp_equals_one_process,
    fsdp_half_precision_norm,
    fsdp_exception_restores_what_was_gathered,
    fsdp_overflow_and_checkpoint,
)
if torch.__version__ < "2.7":
    FSDP = ()  # torch 2.6 shards on GPUs alone


def worker(rank, world, path, cases):
    dist.init_process_group(
        "gloo",
        init_method=f"file://{path}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    for case in cases:
        torch.manual_seed(0)
        case(rank, world)
    dist.destroy_process_group()


@pytest.mark.parametrize(("world", "cases"), [(2, DDP + FSDP), (3, DDP[:1])], ids=["two", "three"])
def test_ranks_agree_with_one_process(tmp_path, world, cases):
    mp.spawn(worker, (world, tmp_path / "rendezvous", cases), nprocs=world)
