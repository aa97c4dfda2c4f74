"""I3D and C3D as the DFEW baselines have them: named modules in a row."""

import torch.nn.functional as F
from torch import nn


class Mixed(nn.Module):
    """Stands for an Inception module: what matters is its name and width."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 1)

    def forward(self, x):
        return F.relu(self.conv(x))


class I3D(nn.Module):
    """(batch, 3, frames, height, width) to logits."""

    def __init__(self):
        super().__init__()
        self.Conv3d_1a_7x7 = nn.Conv3d(3, 192, (7, 7, 7), (2, 4, 4), 3)
        self.Mixed_3c = Mixed(192, 480)
        self.MaxPool3d_4a_3x3 = nn.MaxPool3d(3, 2, 1)
        self.Mixed_4f = Mixed(480, 832)
        self.MaxPool3d_5a_2x2 = nn.MaxPool3d(2, 2)
        self.Mixed_5c = Mixed(832, 1024)
        self.logits = nn.Linear(1024, 7)

    def forward(self, x):
        x = self.Mixed_3c(self.Conv3d_1a_7x7(x))
        x = self.Mixed_4f(self.MaxPool3d_4a_3x3(x))
        x = self.Mixed_5c(self.MaxPool3d_5a_2x2(x))
        return self.logits(x.mean((2, 3, 4)))


class InceptionI3d(I3D):
    """The same under the name of the other port."""


class C3D(nn.Module):
    """(batch, 3, 16, 112, 112) to logits; one ReLU serves all convolutions."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv3d(3, 64, 3, (1, 2, 2), 1)
        self.pool1 = nn.MaxPool3d((1, 2, 2), (1, 2, 2))
        self.conv2, self.pool2 = nn.Conv3d(64, 128, 3, 1, 1), nn.MaxPool3d(2, 2)
        self.conv3b, self.pool3 = nn.Conv3d(128, 256, 3, 1, 1), nn.MaxPool3d(2, 2)
        self.conv4b, self.pool4 = nn.Conv3d(256, 512, 3, 1, 1), nn.MaxPool3d(2, 2)
        self.relu, self.fc8 = nn.ReLU(), nn.Linear(512, 7)

    def forward(self, x):
        x = self.pool1(self.relu(self.conv1(x)))
        x = self.pool2(self.relu(self.conv2(x)))
        x = self.pool3(self.relu(self.conv3b(x)))
        x = self.pool4(self.relu(self.conv4b(x)))
        return self.fc8(x.mean((2, 3, 4)))
