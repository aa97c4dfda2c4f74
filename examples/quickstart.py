"""An ordinary training loop; the lines marked with + are all that this library adds.

    python quickstart.py

Copy this file anywhere: it needs nothing but the package, and seconds. It draws its own clips,
noisy textures, and what there is to recognise is how they move.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hdf_modules import SAM, HeterogeneityAwareLoss, Stage, attach, with_features  # +

MOTIONS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # pixels per frame, down and right
FRAMES = 8


def draw(count: int, side: int = 24) -> TensorDataset:
    """Draw noisy textures (count, 1, time, height, width); the class of each is how it moves."""
    labels = torch.arange(count) % len(MOTIONS)
    textures = nn.functional.avg_pool2d(torch.randn(count, 1, side, side), 3, 1, 1)
    clips = torch.zeros(count, 1, FRAMES, side, side)
    for clip, texture, label in zip(clips, textures, labels, strict=True):
        for t in range(FRAMES):
            clip[:, t] = texture.roll([t * step for step in MOTIONS[label]], (1, 2))
    return TensorDataset(clips + 0.8 * torch.randn_like(clips), labels)


def block(inputs: int, outputs: int) -> nn.Module:
    """One stage of the network; it halves height and width."""
    convolution = nn.Conv3d(inputs, outputs, 3, stride=(1, 2, 2), padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm3d(outputs), nn.ReLU())


def main(seed: int = 0, epochs: int = 8, clips: int = 400) -> float:
    """Train, print the accuracy after every epoch, return the last."""
    torch.manual_seed(seed)
    loader = DataLoader(draw(clips), batch_size=16, shuffle=True)
    held_out, truth = draw(200).tensors

    head = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(32, len(MOTIONS)))
    model: nn.Module = nn.Sequential(block(1, 16), block(16, 32), *head)
    stages = [Stage("0", channels=16), Stage("1", channels=32)]  # +
    model = with_features(attach(model, FRAMES, stages=stages))  # + attention behind both blocks
    criterion = HeterogeneityAwareLoss(nn.CrossEntropyLoss())  # + wraps any loss
    adamw = torch.optim.AdamW(model.parameters(), lr=3e-3)
    optimizer = SAM(adamw, rho=0.05, model=model)  # + wraps any optimizer

    accuracy = 0.0
    for epoch in range(epochs):
        for batch, labels in loader:
            optimizer.zero_grad()
            logits, features = model(batch)
            loss = criterion(logits, labels, features)
            loss.backward()
            with optimizer.ascend(criterion):  # + the second pass, at the worst nearby weights
                logits, features = model(batch)  # +
                criterion(logits, labels, features).backward()  # +
            optimizer.step()
        with torch.no_grad():
            logits, _ = model.eval()(held_out)
        model.train()
        accuracy = (logits.argmax(1) == truth).float().mean().item()
        print(f"epoch {epoch + 1}: {accuracy:.0%} of the held-out clips are recognised")
    return accuracy


if __name__ == "__main__":
    main()
