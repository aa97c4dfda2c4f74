"""Former-DFER: a ResNet of frames with a transformer before its last stage, then one over time."""

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock


def encoder(width, heads):
    return nn.TransformerEncoderLayer(width, heads, 2 * width, batch_first=True)


def layer(inputs, outputs, stride):
    shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
    return nn.Sequential(BasicBlock(inputs, outputs, stride, shortcut))


class ResNet(nn.Module):
    """Frames in a batch of clips (batch, time, 3, 112, 112) to (batch · time, 512)."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(64), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1, self.layer2 = layer(64, 64, 1), layer(64, 128, 2)
        self.layer3, self.layer4 = layer(128, 256, 2), layer(256, 512, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.pos_embedding = nn.Parameter(torch.randn(1, 49, 256))
        self.spatial_transformer = encoder(256, 8)

    def forward(self, x):
        x = x.contiguous().view(-1, 3, 112, 112)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        tokens = self.spatial_transformer(x.flatten(2).transpose(1, 2) + self.pos_embedding)
        return self.avgpool(self.layer4(tokens.transpose(1, 2).view_as(x))).flatten(1)


class TFormer(nn.Module):
    """16 frame features to one."""

    def __init__(self):
        super().__init__()
        self.temporal_transformer = encoder(512, 8)

    def forward(self, x):
        return self.temporal_transformer(x.view(-1, 16, 512)).mean(1)


class GenerateModel(nn.Module):
    """Clips of 16 frames to logits."""

    def __init__(self):
        super().__init__()
        self.s_former, self.t_former, self.fc = ResNet(), TFormer(), nn.Linear(512, 7)

    def forward(self, x):
        return self.fc(self.t_former(self.s_former(x)))
