"""M3DFEL: the children of an r3d_18 in one Sequential, over bags of a clip's frames."""

from einops import rearrange
from torch import nn
from torchvision.models.video import r3d_18


class M3DFEL(nn.Module):
    """(batch, frames, 3, height, width) to logits."""

    def __init__(self, num_frames=16, instance_length=4):
        super().__init__()
        self.bag_size = num_frames // instance_length
        self.features = nn.Sequential(*list(r3d_18().children())[:-1])
        self.lstm = nn.LSTM(512, 512, num_layers=2, batch_first=True, bidirectional=True)
        self.pwconv = nn.Conv1d(self.bag_size, 1, 3, 1, 1)
        self.fc = nn.Linear(1024, 7)

    def forward(self, x):
        x = rearrange(x, "b (bag t) c h w -> (b bag) c t h w", bag=self.bag_size)
        x = self.features(x).flatten(1)
        x, _ = self.lstm(rearrange(x, "(b bag) c -> b bag c", bag=self.bag_size))
        return self.fc(self.pwconv(x).squeeze(1))
