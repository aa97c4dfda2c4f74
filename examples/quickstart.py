"""An ordinary training loop; the lines marked with + are all that this library adds.

python examples/quickstart.py
"""

import torch
from torch.utils.data import DataLoader
from torchvision.models.video import r3d_18

from examples.train.data.clips import ClipDataset
from examples.train.data.synthetic import SyntheticClips
from hdf_modules import SAM, HeterogeneityAwareLoss, attach, with_features


def main(clips: int = 32, size: int = 48, epochs: int = 1) -> float:
    """Train r3d_18 on a few drawn clips; returns the last loss."""
    loader = DataLoader(ClipDataset(SyntheticClips("train", clips, size)), 8, shuffle=True)
    model = r3d_18(num_classes=7)
    model = with_features(attach(model, num_frames=16))  # + attention behind every stage
    criterion = HeterogeneityAwareLoss(alpha=10.0)  # + instead of CrossEntropyLoss()
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-4)
    optimizer = SAM(adamw, rho=0.05, model=model)  # + around the one there was
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad()
            logits, features = model(batch["clip"])
            loss = criterion(logits, batch["label"], features)
            loss.backward()
            with optimizer.ascend(criterion):  # + a second pass, nearby
                logits, features = model(batch["clip"])  # +
                criterion(logits, batch["label"], features).backward()  # +
            optimizer.step()
            print(f"loss {loss.item():.3f}")
    return loss.item()


if __name__ == "__main__":
    main()
