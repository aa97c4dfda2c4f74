"""One epoch of training, one pass of prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from examples.train import distributed
from examples.train.metrics import Predictions, scores
from examples.train.progress import track
from hdf_modules import SAM, HeterogeneityAwareLoss

Batch = dict[str, Tensor]
_STATEFUL = ("criterion", "optimizer", "scheduler", "scaler")


@dataclass
class Trainer:
    """What a training step needs; ``state_dict`` is what it takes to continue bit for bit.

    Args:
        model: gives (logits, features); wrapped in DDP if there are several processes.
        criterion: the loss.
        optimizer: AdamW, or SAM around it.
        scheduler: stepped once per batch.
        scaler: of float16 gradients; disabled elsewhere.
        device: of the batches.
        amp: mixed precision.
        clip_grad: largest gradient norm.
    """

    model: nn.Module
    criterion: HeterogeneityAwareLoss
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler
    device: torch.device
    amp: bool = False
    clip_grad: float = float("inf")
    terms: list[dict[str, Tensor]] = field(default_factory=list)

    def step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Take one step; returns the loss and the predicted classes of its first pass."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, logits = self._backward(batch)
        norm = self._ascend_or_measure(batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.terms.append(self._terms() | {"gradient_norm": norm.detach()})
        return loss, logits.argmax(1)

    def _backward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        with autocast(self.device, self.amp):
            logits, features = self.model(batch["clip"])
            loss = self.criterion(logits, batch["label"], features, batch["group"])
        self.scaler.scale(loss).backward()
        return loss.detach(), logits.detach()

    def _ascend_or_measure(self, batch: Batch) -> Tensor:
        """SAM's second pass where there is SAM; the gradient norm, told to the loss, either way."""
        if isinstance(self.optimizer, SAM):
            with self.optimizer.ascend(criterion=self.criterion, scaler=self.scaler):
                self._backward(batch)
        self.scaler.unscale_(self.optimizer)
        clipped = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad)
        if isinstance(self.optimizer, SAM):
            return torch.as_tensor(self.optimizer.grad_norm)
        self.criterion.rescale(clipped)
        return clipped

    def _terms(self) -> dict[str, Tensor]:
        return {
            name: torch.as_tensor(value).detach() for name, value in self.criterion.terms.items()
        }

    def history(self) -> list[dict[str, float]]:
        """The terms of the steps since the last call, fetched from the device at once."""
        rows = [{name: float(value) for name, value in step.items()} for step in self.terms]
        self.terms.clear()
        return rows

    def state_dict(self) -> dict[str, Any]:
        state = {name: getattr(self, name).state_dict() for name in _STATEFUL}
        return state | {"model": unwrapped(self.model).state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        unwrapped(self.model).load_state_dict(state["model"])
        for name in _STATEFUL:
            getattr(self, name).load_state_dict(state[name])


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DDP."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def autocast(device: torch.device, enabled: bool) -> AbstractContextManager[Any]:
    """Mixed precision: float16 on GPUs, bfloat16 elsewhere."""
    return torch.autocast(device.type) if enabled else nullcontext()


def train_epoch(
    trainer: Trainer, loader: DataLoader[Any], report: Callable[[int, dict[str, float]], None]
) -> dict[str, float]:
    """Train one epoch; ``report`` hears the running loss, WAR and UAR of this process.

    Returns:
        Loss, WAR and UAR over all processes, measured on the batches as they were trained on.
    """
    trainer.model.train()
    losses, said, true = [], [], []
    for step, batch in enumerate(_batches(loader, trainer.device)):
        loss, predicted = trainer.step(batch)
        losses.append(loss)
        said.append(predicted)
        true.append(batch["label"])
        if step % 5 == 4 or step + 1 == len(loader):
            report(step + 1, _summary(losses, said, true))
    gathered = distributed.gather(
        (torch.stack(losses).cpu(), torch.cat(said).cpu(), torch.cat(true).cpu())
    )
    return _summary(*([part[i] for part in gathered] for i in range(3)))


def _summary(losses: list[Tensor], said: list[Tensor], true: list[Tensor]) -> dict[str, float]:
    labels, predicted = torch.cat(true), torch.cat(said)
    loss = torch.cat([value.reshape(-1) for value in losses]).mean()
    classes = int(max(labels.max(), predicted.max())) + 1
    return {"loss": float(loss)} | scores(predicted, labels, max(classes, 2))


def _batches(loader: DataLoader[Any], device: torch.device) -> Iterator[Batch]:
    for batch in loader:
        yield {name: value.to(device, non_blocking=True) for name, value in batch.items()}


@torch.no_grad()
def predict(
    model: nn.Module,
    loader: DataLoader[Any],
    device: torch.device,
    amp: bool = False,
    what: str = "predicting",
) -> Predictions:
    """Predict every clip of a loader, each process its share; all processes get all, in order."""
    unwrapped(model).eval()
    parts: list[tuple[Tensor, ...]] = []
    for batch in track(_batches(loader, device), what, len(loader)):
        with autocast(device, amp):
            logits, features = unwrapped(model)(batch["clip"])
        found = (batch["item"], batch["label"], batch["group"], logits.float(), features.float())
        parts.append(tuple(value.cpu() for value in found))
    gathered = [part for share in distributed.gather(parts) for part in share]
    items, labels, groups, logits, features = (
        torch.cat(column) for column in zip(*gathered, strict=True)
    )
    order = items.argsort()
    return Predictions(labels[order], groups[order], logits[order], features[order])
