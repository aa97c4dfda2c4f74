"""IAL: stages that take and return tuples, and a last one that sees differences of 16 frames."""

import torch
from torch import nn
from torchvision.models import resnet


class BasicBlock(resnet.BasicBlock):
    """(features, anything) to (features, logits of an auxiliary classifier)."""

    def __init__(self, inputs, outputs, stride):
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        super().__init__(inputs, outputs, stride, shortcut)
        self.AUX_fc = nn.Linear(outputs, 7)

    def forward(self, x):
        out = super().forward(x[0])
        return out, self.AUX_fc(out.mean((2, 3)).unflatten(0, (-1, 16)).mean(1))


class BasicBlock_act(resnet.BasicBlock):  # noqa: N801 - its name
    """A block of the last stage: features alone."""


class ResNet(nn.Module):
    """(batch, 16, 3, 112, 112) to (batch, 15, 4096) and three auxiliary logits."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU())
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2))
        shortcut = nn.Sequential(nn.Conv2d(256, 256, 1, 2), nn.BatchNorm2d(256))
        self.layer4 = nn.Sequential(BasicBlock_act(256, 256, 2, shortcut), BasicBlock_act(256, 256))
        self.patch_embedding = nn.Conv2d(256, 256, 3, 2, 1)

    def forward(self, x):
        x = self.maxpool(self.conv1(x.contiguous().view(-1, 3, 112, 112)))
        x, logits1 = self.layer1((x, 0))
        x, logits2 = self.layer2((x, 0))
        x, logits3 = self.layer3((x, 0))
        clips = x.unflatten(0, (-1, 16))
        x = self.layer4((clips[:, 1:] - clips[:, :-1]).flatten(0, 1))
        x = x + self.patch_embedding(clips[:, :-1].flatten(0, 1))
        x = x.flatten(1).unflatten(0, (-1, 15))
        return x + torch.tanh(x), logits1, logits2, logits3


class GenerateModel(nn.Module):
    """Clips to logits, features and auxiliary logits."""

    def __init__(self):
        super().__init__()
        self.s_former, self.fc_f = ResNet(), nn.Linear(4096, 7)

    def forward(self, x):
        x, *auxiliary = self.s_former(x)
        features = x.mean(1)
        return self.fc_f(features), features, *auxiliary
