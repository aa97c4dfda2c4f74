"""Each line of the README's diff works without the others."""

from itertools import product

import pytest
import torch
from torch import nn
from torchvision.models.video.resnet import BasicBlock, BasicStem, Conv3DSimple, VideoResNet

from hdf_modules import SAM, HeterogeneityAwareLoss, attach, with_features


@pytest.mark.parametrize(("attention", "loss", "sam"), list(product((False, True), repeat=3)))
def test_a_loop_with_some_of_the_lines(attention, loss, sam, device):
    model = VideoResNet(BasicBlock, [Conv3DSimple] * 4, [1, 1, 1, 1], BasicStem, 3)
    model = attach(model, num_frames=4) if attention else model
    model = (with_features(model) if loss else model).to(device)
    criterion = HeterogeneityAwareLoss(nn.CrossEntropyLoss()) if loss else nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer = SAM(optimizer, rho=0.01, model=model) if sam else optimizer
    clips, labels = torch.rand(6, 3, 4, 16, 16, device=device), torch.arange(6, device=device) % 3

    def forward():
        if not loss:
            return criterion(model(clips), labels)
        logits, features = model(clips)
        return criterion(logits, labels, features)

    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        value = forward()
        value.backward()
        if sam:
            with optimizer.ascend(criterion):
                forward().backward()
        optimizer.step()
        losses.append(value.item() if not loss else criterion.log_dict()["classification"])
    assert losses[-1] < losses[0]
