"""The loss on two and three real processes equals one process on the concatenated batch."""

import copy
import re
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hdf_modules import HDFError, HeterogeneityAwareLoss
from hdf_modules.loss import KL, Chi2, CVaR, Fixed, GroupDRO, KLBall, Ramp, RobustContrastive, Trim

pytestmark = pytest.mark.cpu_only  # gloo's processes

K, D = 4, 6
SIZES = {1: [(5,)], 2: [(5, 3), (0, 7), (4, 0), (1, 1)], 3: [(4, 1, 6), (0, 5, 2), (3, 0, 0)]}
CLASS_WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0])
CASES = {
    "mean": {},
    "class weights": {"base": nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, ignore_index=1)},
    "kl": {"weighting": KL(0.5), "contrastive": RobustContrastive(block_size=3)},
    "kl-ball": {"weighting": KLBall(Ramp(0.1, 0.6, steps=2))},
    "chi2": {"weighting": Chi2(0.7)},
    "cvar": {"weighting": CVaR(0.4), "contrastive": RobustContrastive(memory=6, block_size=2)},
    "group": {
        "weighting": GroupDRO(0.3, by_class=True),
        "contrastive": RobustContrastive(memory=100),
    },
    "across groups": {"contrastive": RobustContrastive(across_groups=True, memory=6)},
    "across groups in tiles": {"contrastive": RobustContrastive(across_groups=True, block_size=2)},
    "trimmed": {
        "weighting": Trim(Chi2(0.5), 0.2),
        "contrastive": RobustContrastive(block_size=2),
    },
    "callable": {"weighting": lambda losses: losses.softmax(0)},
    "no contrastive term": {"contrastive": None, "balance": Fixed(2.0, 0.3)},
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(D, D), nn.Linear(D, K)

    def forward(self, x):
        features = self.body(x)
        return self.head(features), features


class NetAndLoss(Net):
    """A model that holds its loss, so that DDP also broadcasts the loss's buffers."""

    def __init__(self, criterion):
        super().__init__()
        self.criterion = criterion

    def forward(self, x, target, groups):
        logits, features = super().forward(x)
        return self.criterion(logits, target, features, groups)


def batch(size, soft, dtype):
    target = torch.randint(K, (size,))
    labels = torch.randn(size, K, dtype=dtype).softmax(1) if soft else target
    return torch.randn(size, D, dtype=dtype), labels, torch.randint(3, (size,))


def step(model, criterion, x, target, groups):
    """One step of SAM by hand; return what has to be equal everywhere."""
    model.zero_grad()
    logits, features = model(x)
    loss = criterion(logits, target, features, groups)
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    criterion.rescale(torch.stack([g.norm() for g in gradients]).norm())
    model.zero_grad()
    with torch.no_grad():
        for p, g in zip(model.parameters(), gradients, strict=True):
            p.add_(g, alpha=0.1)
    with criterion.frozen():
        logits, features = model(x)
        second = criterion(logits, target, features, groups)
    second.backward()
    gradients += [p.grad.clone() for p in model.parameters()]
    state = {name: value for name, value in criterion.state_dict().items() if value.numel()}
    return loss.detach(), second.detach(), gradients, criterion.terms, criterion.shares, state


def equals_one_process(rank, sizes, options, soft, dtype):
    """Three steps, the last with a loss that was saved and loaded."""
    torch.manual_seed(sum(sizes))
    model = Net().to(dtype)
    alone = copy.deepcopy(model)
    parallel = DistributedDataParallel(model)
    criterion = HeterogeneityAwareLoss(**options).to(dtype)
    reference = HeterogeneityAwareLoss(**options, gather=False).to(dtype)
    start = sum(sizes[:rank])
    own = slice(start, start + sizes[rank])
    tolerance = 1e-10 if dtype == torch.float64 else 1e-6
    for number in range(3):
        if number == 2:
            state = criterion.state_dict()
            criterion = HeterogeneityAwareLoss(**options).to(dtype)
            criterion.load_state_dict(state)
        whole = batch(sum(sizes), soft, dtype)
        found = step(parallel, criterion, *(rows[own] for rows in whole))
        expected = step(alone, reference, *whole)
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
        values = [torch.empty_like(found[0]) for _ in sizes]
        dist.all_gather(values, found[0])
        assert len(set(map(float, values))) == 1, "the ranks' values are equal to the bit"


def loss_inside_the_model_equals_one_process(rank):
    options = {"weighting": GroupDRO(0.3), "contrastive": RobustContrastive(memory=6)}
    parallel = NetAndLoss(HeterogeneityAwareLoss(**options)).double()
    alone = NetAndLoss(HeterogeneityAwareLoss(**options, gather=False)).double()
    alone.load_state_dict(parallel.state_dict())
    parallel = DistributedDataParallel(parallel)
    count = dist.get_world_size()
    for _ in range(3):
        whole = batch(3 * count, False, torch.float64)
        found = parallel(*(rows[3 * rank : 3 * rank + 3] for rows in whole))
        expected = alone(*whole)
        for model, loss in ((parallel, found), (alone, expected)):
            model.zero_grad()
            loss.backward()
        pairs = zip(parallel.parameters(), alone.parameters(), strict=True)
        for one, other in [(found, expected), *((p.grad, q.grad) for p, q in pairs)]:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def raises_everywhere(rank, message, **changes):
    """The last rank gets a bad batch; every rank raises, and the next call works."""
    criterion = HeterogeneityAwareLoss()
    good = {
        "logits": torch.randn(3, K),
        "target": torch.randint(K, (3,)),
        "features": torch.randn(3, D),
        "groups": torch.randint(3, (3,)),
    }
    bad = good | changes if rank == dist.get_world_size() - 1 else good
    with pytest.raises(HDFError) as caught:
        criterion(**bad)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert criterion(**good).isfinite()


def bad_input(rank, world):
    last, nan = f"rank {world - 1}", torch.full((3, K), float("nan"))
    raises_everywhere(
        rank,
        f"losses: look .*expected finite .* index 0, 1, 2 on {last}$",
        logits=nan,
        features=None,
    )
    raises_everywhere(rank, f"features: .* index 0, 1, 2 on {last}", features=nan)
    raises_everywhere(rank, f"groups: .*3 ids.* found 2 on {last}", groups=torch.zeros(2).long())
    raises_everywhere(rank, f"target: .* on {last}", target=torch.zeros(2).long())
    raises_everywhere(rank, f"target: .*found {K} on {last}", target=torch.full((3,), K))
    raises_everywhere(
        rank, f"base: .*RuntimeError.* on {last}", target=torch.rand(3, K + 1).softmax(1)
    )
    raises_everywhere(rank, f"batch: .*{last}: .-1, 0, 0.", features=None)
    raises_everywhere(rank, f"batch: .*{last}: .6, 0, -1.", groups=None)


def local_by_choice(rank, world):
    """Without ``gather``, and in evaluation mode, a rank works alone and waits for nobody."""
    if rank == 0:
        logits, target = torch.randn(3, K), torch.randint(K, (3,))
        expected = nn.functional.cross_entropy(logits, target)
        torch.testing.assert_close(HeterogeneityAwareLoss(gather=False)(logits, target), expected)
        torch.testing.assert_close(HeterogeneityAwareLoss().eval()(logits, target), expected)
    dist.barrier()


def check(rank, world, path):
    """All that is tested on ``world`` processes, of which this is one."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{path}-{world}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    for number, options in enumerate(CASES.values()):
        for index, sizes in enumerate(SIZES[world]):
            dtype = torch.float32 if (index + number) % 4 == 3 else torch.float64
            soft = number % 2 == 0 and "base" not in options
            equals_one_process(rank, sizes, options, soft, dtype)
    if world > 1:
        loss_inside_the_model_equals_one_process(rank)
        bad_input(rank, world)
        local_by_choice(rank, world)
    dist.destroy_process_group()


def worker(rank, path):
    torch.set_num_threads(1)
    for world in (2, 3):
        if rank < world:
            check(rank, world, path)


def test_a_single_rank_equals_one_process(tmp_path):
    check(0, 1, tmp_path / "rendezvous")


def test_two_and_three_ranks_equal_one_process_and_raise_together(tmp_path):
    mp.spawn(worker, (tmp_path / "rendezvous",), nprocs=3)
