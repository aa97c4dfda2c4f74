"""SAM inside Lightning and Accelerate trains as a plain loop does."""

import copy
import math
from contextlib import nullcontext
from functools import partial
from itertools import islice

import accelerate
import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hdf_modules import SAM, HDFError, HeterogeneityAwareLoss, with_features
from tests.support.reference.sam import sam_gradient

QUIET = {
    "devices": 1,
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


def parts(device, dropout=0.3):
    """A model, its loss and its data: 6 batches of 4."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.Dropout(dropout), nn.Tanh(), nn.Linear(16, 3))
    criterion = HeterogeneityAwareLoss(weighting="kl")
    x, y = torch.randn(24, 6, device=device), torch.randint(3, (24,), device=device)
    return with_features(net).to(device), criterion.to(device), DataLoader(TensorDataset(x, y), 4)


def make_sam(model):
    return SAM(torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), rho=0.5, model=model)


def plain_loop(
    model, criterion, loader, *, bfloat16=False, clip=math.inf, accumulate=1, around=nullcontext
):
    """What the frameworks have to reproduce; every forward pass casts the weights itself."""
    sam = make_sam(model)

    def backward(x, y):
        half = {"enabled": bfloat16, "cache_enabled": False}
        with torch.autocast(x.device.type, torch.bfloat16, **half):
            logits, features = model(x)
            loss = criterion(logits, y, features)
        (loss / accumulate).backward()

    for i, batch in enumerate(loader):
        torch.manual_seed(i)  # frameworks draw random numbers between batches
        with around(), sam.micro_batch():
            backward(*batch)
            with sam.ascend(criterion):
                backward(*batch)
        if (i + 1) % accumulate == 0:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            sam.step()
            sam.zero_grad()
    return sam


class Manual(lightning.LightningModule):
    def __init__(self, model, criterion, clip):
        super().__init__()
        self.model, self.criterion, self.clip = model, criterion, clip
        self.automatic_optimization = False
        self.seen = []

    def configure_optimizers(self):
        self.sam = make_sam(self.model)
        return self.sam

    def on_train_batch_start(self, _, i):
        torch.manual_seed(i)

    def training_step(self, batch, _):
        sam = self.optimizers()
        sam.zero_grad()
        self.manual_backward(self.loss(batch))
        with sam.ascend(self.criterion):
            self.manual_backward(self.loss(batch))
        self.clip_gradients(sam, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
        sam.step()
        assert sam.grad_norm == self.sam.grad_norm > 0

    def loss(self, batch):
        logits, features = self.model(batch[0])
        return self.criterion(logits, batch[1], features)


class Automatic(Manual):
    def __init__(self, model, criterion, clip):
        super().__init__(model, criterion, clip)
        self.automatic_optimization = True

    def training_step(self, batch, _):
        return self.loss(batch)


def same(model, other, tolerance=1e-6):
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        # Lightning leaves its model on the processor
        torch.testing.assert_close(p.to(q.device), q, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("clip", [math.inf, 0.05])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_by_hand(tmp_path, precision, clip, device):
    model, criterion, loader = parts(device)
    module = Manual(copy.deepcopy(model), copy.deepcopy(criterion), clip)
    options = {"max_epochs": 1, "precision": precision, "default_root_dir": tmp_path}
    lightning.Trainer(accelerator=device.type, **options, **QUIET).fit(module, loader)
    half = precision != "32-true"
    # Lightning's autocast holds the whole step; without its cache, no cast can be stale
    cast = partial(torch.autocast, device.type, torch.bfloat16, enabled=half, cache_enabled=False)
    sam = plain_loop(model, criterion, loader, bfloat16=half, clip=clip, around=cast)
    same(module.model, model)
    assert module.sam.grad_norm == pytest.approx(sam.grad_norm, rel=1e-5)
    assert float(module.criterion.balance.lambda_ce) == pytest.approx(
        float(criterion.balance.lambda_ce), rel=1e-5
    )


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_by_closure(tmp_path, precision, device):
    # automatic optimisation hands step() a closure: both passes run, without the criterion's λ
    model, criterion, loader = parts(device, dropout=0.0)
    module = Automatic(copy.deepcopy(model), copy.deepcopy(criterion), None)
    options = {"max_epochs": 1, "precision": precision, "default_root_dir": tmp_path}
    lightning.Trainer(accelerator=device.type, **options, **QUIET).fit(module, loader)
    criterion.rescale = lambda grad_norm: None
    plain_loop(model, criterion, loader, bfloat16=precision != "32-true")
    same(module.model, model)
    assert module.sam.sharpness_gap > 0


class Skipping(Automatic):
    def training_step(self, batch, i):
        return None if i == 2 else self.loss(batch)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_batch_that_lightning_skips_moves_nothing(tmp_path, device):
    model, criterion, loader = parts(device, dropout=0.0)
    module = Skipping(copy.deepcopy(model), copy.deepcopy(criterion), None)
    with pytest.warns(UserWarning, match="without a backward pass in it is a plain step"):
        lightning.Trainer(
            max_epochs=1, accelerator=device.type, default_root_dir=tmp_path, **QUIET
        ).fit(module, loader)
    criterion.rescale = lambda grad_norm: None
    plain_loop(model, criterion, [batch for i, batch in enumerate(loader) if i != 2])
    same(module.model, model)


def test_lightning_resumes(tmp_path, device):
    model, criterion, loader = parts(device, dropout=0.0)
    whole, first, second = (
        Manual(copy.deepcopy(model), copy.deepcopy(criterion), math.inf) for _ in range(3)
    )
    options = {"default_root_dir": tmp_path, "accelerator": device.type} | QUIET
    lightning.Trainer(max_epochs=2, **options).fit(whole, loader)
    trainer = lightning.Trainer(max_epochs=1, **options)
    trainer.fit(first, loader)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    lightning.Trainer(max_epochs=2, **options).fit(
        second, loader, ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )
    same(whole.model, second.model, tolerance=0)
    assert second.sam.param_groups[0]["sam_steps"] == 12


@pytest.mark.parametrize(
    ("precision", "clip", "accumulate"),
    [("no", math.inf, 1), ("no", 0.05, 1), ("bf16", 0.05, 1), ("no", 0.05, 3), ("bf16", 0.05, 2)],
)
def test_accelerate(precision, clip, accumulate, device):
    original, criterion, loader = parts(device)
    options = {"mixed_precision": precision, "gradient_accumulation_steps": accumulate}
    accelerator = accelerate.Accelerator(cpu=device.type == "cpu", **options)
    twin, loss_of = copy.deepcopy(original), copy.deepcopy(criterion)
    model, optimizer, batches = accelerator.prepare(twin, make_sam(twin), loader)

    def backward(x, y):
        logits, features = model(x)
        accelerator.backward(loss_of(logits, y, features))

    for i, batch in enumerate(batches):
        torch.manual_seed(i)
        with accelerator.accumulate(model):
            with optimizer.optimizer.micro_batch():
                backward(*batch)
                with optimizer.optimizer.ascend(loss_of, accelerator.scaler):
                    backward(*batch)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    half = precision == "bf16"
    plain_loop(original, criterion, loader, bfloat16=half, clip=clip, accumulate=accumulate)
    # Accelerate hands out float32 outputs, so that the loss itself is not cast
    same(model, original, 2e-3 if half else 1e-6)


# Accumulation, against SAM of both micro-batches together from its definition, in float64


def accumulated(device):
    """A model in float64 and 8 batches of 3."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)).to(device).double()
    x = torch.randn(24, 6, dtype=torch.float64, device=device)
    return model, DataLoader(TensorDataset(x), 3)


def error(model, x):
    return (model(x) - 1).pow(4).mean()


def joint(model, loader):
    """Plain SGD on SAM's gradient of two batches at a time."""
    names, weights = zip(*model.named_parameters(), strict=True)
    sgd = torch.optim.SGD(weights, lr=0.1)
    for x in torch.cat([x for (x,) in loader]).split(6):

        def loss(*values, x=x):
            values = dict(zip(names, values, strict=True))
            return (torch.func.functional_call(model, values, (x,)) - 1).pow(4).mean()

        for w, gradient in zip(
            weights, sam_gradient(loss, [(weights, 0.5, False)])[0], strict=True
        ):
            w.grad = gradient
        sgd.step()


def sgd_sam(model):
    return SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5)


class Accumulating(lightning.LightningModule):
    """By hand: the first pass of two batches, then the second one of both."""

    def __init__(self, model, automatic):
        super().__init__()
        self.model, self.automatic_optimization, self.seen = model, automatic, []

    def configure_optimizers(self):
        return sgd_sam(self.model)

    def training_step(self, batch, i):
        loss = error(self.model, batch[0])
        if self.automatic_optimization:
            return loss
        self.manual_backward(loss / 2)
        self.seen.append(batch[0])
        if i % 2:
            sam = self.optimizers()
            with sam.ascend():
                for x in self.seen:
                    self.manual_backward(error(self.model, x) / 2)
            sam.step()
            sam.zero_grad()
            self.seen.clear()
        return None


def fit(module, loader, tmp_path, device, **options):
    places = {"default_root_dir": tmp_path, "accelerator": device.type}
    lightning.Trainer(max_epochs=1, **places, **options, **QUIET).fit(module, loader)


def test_lightning_accumulates_by_hand(tmp_path, device):
    model, loader = accumulated(device)
    module = Accumulating(copy.deepcopy(model), automatic=False)
    fit(module, loader, tmp_path, device)
    joint(model, loader)
    same(module.model, model)


def test_lightning_that_accumulates_by_itself_is_refused(tmp_path, device):
    model, loader = accumulated(device)
    module = Accumulating(copy.deepcopy(model), automatic=True)
    with pytest.raises(
        HDFError, match=r"with sam.micro_batch\(\):` \(in Lightning: optimise by hand"
    ):
        fit(module, loader, tmp_path, device, accumulate_grad_batches=2)
    same(module.model, model, tolerance=0)


class Accelerated:
    """What `accelerate` makes of a model and its SAM, and the batches that it accumulates."""

    def __init__(self, model, loader, device):
        cpu = device.type == "cpu"
        self.accelerator = accelerate.Accelerator(cpu=cpu, gradient_accumulation_steps=2)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(
            model, sgd_sam(model), loader
        )

    def backward(self, *batches):
        for x in batches:
            self.accelerator.backward(error(self.model, x))

    def ascend(self, *batches):
        with self.optimizer.ascend():
            self.backward(*batches)

    def pairs(self):
        """Yield batches, and with every second one the two of its step."""
        seen = []
        for (x,) in self.loader:
            seen.append(x)
            with self.accelerator.accumulate(self.model):
                yield x, seen if self.accelerator.sync_gradients else []
            seen = [] if len(seen) == 2 else seen


@pytest.mark.parametrize("how", ["by hand", "closure"])
def test_accelerate_accumulates(how, device):
    original, loader = accumulated(device)
    twin = copy.deepcopy(original)
    loop = Accelerated(twin, loader, device)
    for x, both in loop.pairs():
        if how == "by hand":
            loop.backward(x)
            if both:
                loop.ascend(*both)
            loop.optimizer.step()
            loop.optimizer.zero_grad()
            continue

        def closure(both=both):  # called for the second batch alone, and brings both
            loop.optimizer.zero_grad()
            loop.backward(*both)

        loop.optimizer.step(closure)
    joint(original, loader)
    same(twin, original)


@pytest.mark.parametrize("how", ["by hand", "closure"])
def test_accelerate_that_accumulates_as_without_sam_is_refused(how, device):
    model, loader = accumulated(device)
    before = copy.deepcopy(model)
    loop = Accelerated(model, loader, device)
    (first, _), (second, _) = islice(loop.pairs(), 2)
    loop.backward(first)
    if how == "by hand":
        loop.ascend(first)
        loop.backward(second)
    last = {
        "by hand": lambda: loop.ascend(second),
        "closure": lambda: loop.optimizer.step(lambda: loop.backward(second)),
    }
    with pytest.raises(HDFError, match=r"with sam.micro_batch\(\):`"):
        last[how]()
    same(model, before, tolerance=0)
