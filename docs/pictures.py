"""Draw the pictures of the docs from running code.

python -m docs.pictures    # docs/images/*.png, about two minutes on two cores
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import torch
from torch import Tensor, nn

from examples.train.data.clips import to_tensor
from examples.train.data.dynamics import DynamicsClips
from examples.train.models import add_attention, build
from examples.train.report.gates import catch_gates
from examples.train.report.style import colour, new_figure, styled
from hdf_modules import SAM, HeterogeneityAwareLoss, with_features
from hdf_modules.functional import dro_weights

IMAGES = Path(__file__).parent / "images"
SIZE, SHOWN = 32, (0, 5, 10, 15)


def main() -> None:
    """Draw all of them."""
    IMAGES.mkdir(exist_ok=True)
    with styled():
        weights()
        model, history = train()
        balance(history)
        gates(model)


def weights() -> None:
    """What each weighting gives the samples of one batch, by their losses."""
    losses = torch.linspace(0.05, 3.0, 24)
    rows = {
        "KL(1)": ("kl", 1.0),
        "Chi2(0.5)": ("chi2", 0.5),
        "CVaR(0.5)": ("cvar", 0.5),
        "KLBall(log 2)": ("kl-ball", 0.6931),
    }
    figure, axes = new_figure(9, 2.6, 1, len(rows), sharey=True)
    for i, (axis, (title, (objective, level))) in enumerate(zip(axes, rows.items(), strict=True)):
        given = dro_weights(losses, objective, level)
        axis.bar(losses, len(losses) * given, width=0.1, color=colour(i))
        axis.axhline(1, color="#6E6E6E", linestyle="--", linewidth=1)
        axis.set(title=title, xlabel="loss of a sample")
    axes[0].set_ylabel("times the mean's weight")
    figure.savefig(IMAGES / "weights.png", dpi=110)


def train(epochs: int = 14) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train the small network on faces in motion, with every part of the library."""
    torch.manual_seed(0)
    clips = DynamicsClips("train", 480, SIZE)
    data = torch.stack([to_tensor(frames) for frames in clips.render()])
    labels = torch.tensor([clip.label for clip in clips.clips])
    model = with_features(add_attention(build("small", len(clips.classes)), 16))
    criterion = HeterogeneityAwareLoss()
    optimizer = SAM(torch.optim.AdamW(model.parameters(), lr=3e-3), model=model)
    history: list[dict[str, float]] = []

    def loss(batch: Tensor) -> Tensor:
        logits, features = model(data[batch])
        return criterion(logits, labels[batch], features)

    for _ in range(epochs):
        for batch in torch.randperm(len(data)).split(48):
            optimizer.zero_grad()
            loss(batch).backward()
            first = criterion.log_dict()
            with optimizer.ascend(criterion):
                loss(batch).backward()
            optimizer.step()
            history.append(first | {"g": optimizer.grad_norm})
    return model, history


def balance(history: list[dict[str, float]]) -> None:
    """G, both λ, and the terms over the steps of a training."""
    figure, axes = new_figure(9, 2.8, 1, 3)
    panels = (
        ("Gradient norm", ("g",)),
        ("Weights of the terms", ("lambda_ce", "lambda_sc")),
        ("Terms", ("classification", "contrastive")),
    )
    for axis, (title, names) in zip(axes, panels, strict=True):
        for i, name in enumerate(names):
            axis.plot([step[name] for step in history], color=colour(i), linewidth=1, label=name)
        axis.set(title=title, xlabel="step")
        axis.margins(y=0.25)  # room for the legend
        axis.legend(loc="upper right", ncols=2, fontsize=8)
    figure.savefig(IMAGES / "balance.png", dpi=110)


def gates(model: nn.Module) -> None:
    """Frames of two test clips, the temporal gate over them, the frequency gate of each stage."""
    clips = DynamicsClips("test", 5, SIZE)
    chosen = [i for i, clip in enumerate(clips.clips) if clips.classes[clip.label] != "neutral"][:2]
    frames = [clips.frames(i) for i in chosen]
    _, found = catch_gates(model, torch.stack([to_tensor(each) for each in frames]))
    figure, axes = new_figure(10, 3.6, 2, len(SHOWN) + 1 + len(found))
    for row, (index, shown) in enumerate(zip(chosen, frames, strict=True)):
        for axis, t in zip(axes[row], SHOWN, strict=False):
            axis.imshow(shown[t])
            axis.set_title(f"frame {t}", fontsize=8)
        name = clips.classes[clips.clips[index].label]
        axes[row][0].set_title(f"{name}, frame 0", fontsize=8)
        curve = axes[row][len(SHOWN)]
        for i, gate in enumerate(found):
            curve.plot(gate.temporal[row], color=colour(i), label=f"stage {i + 1}")
        curve.set_title("temporal gates", fontsize=8)
        curve.tick_params(labelsize=7)
        for i, gate in enumerate(found):
            axis = axes[row][len(SHOWN) + 1 + i]
            axis.imshow(gate.frequency[row], cmap="magma")
            axis.set_title(f"frequency, {i + 1}", fontsize=8)
        for axis in (*axes[row][: len(SHOWN)], *axes[row][len(SHOWN) + 1 :]):
            axis.axis("off")
    lines = axes[0][len(SHOWN)].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=len(found), fontsize=8)
    figure.savefig(IMAGES / "gates.png", dpi=130)


if __name__ == "__main__":
    mpl.use("Agg")
    main()
