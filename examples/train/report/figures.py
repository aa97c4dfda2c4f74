"""The figures of a run's report, each a function from values to an inline image."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch.nn.functional import cross_entropy, interpolate, normalize

from examples.train.data.clips import Frames
from examples.train.metrics import Predictions, calibration
from examples.train.report.gates import Gates
from examples.train.report.style import PLAIN, colour, inline, named, new_figure
from hdf_modules.functional import dro_weights

# Shown in the weight figure where the run itself does not weight.
_OBJECTIVES = (("kl-ball", 0.5), ("chi2", 0.5), ("cvar", 0.3))


def curves(epochs: list[dict[str, Any]], best: int) -> str:
    """Loss, WAR and UAR over epochs; the chosen epoch is marked."""
    figure, axes = new_figure(11, 3.1, 1, 3)
    x = np.arange(1, len(epochs) + 1)
    for axis, key, title in zip(
        axes, ("loss", "war", "uar"), ("Cross-entropy", "WAR, %", "UAR, %"), strict=True
    ):
        for part, style, tone in (("train", "o--", 2), ("val", "o-", 1)):
            values = [epoch[part][key] for epoch in epochs]
            label = "training (augmented)" if part == "train" else "validation"
            axis.plot(x, values, style, color=colour(tone), label=label, ms=3.5)
        axis.axvline(best + 1, color=colour(0), lw=1.5, zorder=0, label=f"chosen epoch {best + 1}")
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(fontsize=8)
    return inline(figure)


def confusion_matrix(counts: list[list[int]], classes: list[str]) -> str:
    """Rows are true classes, in percent of the row; counts in small print."""
    table = np.array(counts)
    share = 100 * table / np.maximum(table.sum(1, keepdims=True), 1)
    side = 1.6 + 0.62 * len(classes)
    figure, axis = new_figure(side + 0.8, side)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=100)
    axis.grid(visible=False)
    for (row, column), value in np.ndenumerate(share):
        tone = "white" if value > 55 else "#333"
        axis.text(column, row - 0.08, f"{value:.0f}", ha="center", va="center", color=tone)
        axis.text(
            column, row + 0.28, table[row, column], ha="center", va="center", color=tone, fontsize=6
        )
    ticks = range(len(classes))
    axis.set_xticks(ticks, classes, rotation=40, ha="right")
    axis.set_yticks(ticks, [f"{name} ({n})" for name, n in zip(classes, table.sum(1), strict=True)])
    axis.set(xlabel="predicted", ylabel="true")
    return inline(figure)


def reliability(found: Predictions) -> tuple[str, float]:
    """Accuracy over confidence, with the number of clips; returns image and calibration error."""
    table, error = calibration(found)
    said, right, clips = (np.array(column) for column in zip(*table, strict=True))
    figure, (axis, below) = new_figure(5, 5, 2, 1, sharex=True, height_ratios=[3, 1])
    axis.plot([0, 1], [0, 1], ls="--", lw=1, color=colour(2), label="as sure as right")
    axis.plot(said, right, "o-", color=colour(1), label="this run")
    axis.set(title="Accuracy by confidence", ylim=(-0.03, 1.03), ylabel="share recognised")
    axis.legend(fontsize=8)
    below.bar(said, clips, 0.05, color=colour(1))
    below.set(xlim=(0, 1), xlabel="confidence", ylabel="clips")
    return inline(figure), error


def feature_map(found: Predictions, classes: list[str], groups: tuple[str, ...]) -> tuple[str, str]:
    """Test features in the plane by class and by group; returns image and method."""
    x = normalize(found.features, dim=1).numpy()
    method = "t-SNE" if len(x) >= 50 else "PCA"
    flat = _embed(x, method)
    figure, axes = new_figure(11, 4.6, 1, 2)
    for axis, ids, names, title in (
        (axes[0], found.labels, classes, "by expression"),
        (axes[1], found.groups, groups, "by source"),
    ):
        for i, name in enumerate(names):
            mine = (ids == i).numpy()
            if mine.any():
                axis.scatter(
                    *flat[mine].T, s=13, color=colour(i), label=named(name), alpha=0.8, lw=0
                )
        axis.set(title=title, xticks=[], yticks=[])
        axis.legend(fontsize=8, markerscale=1.6, loc="upper left", bbox_to_anchor=(1, 1))
    return inline(figure), method


def _embed(x: np.ndarray[Any, Any], method: str) -> np.ndarray[Any, Any]:
    if len(x) == 1:  # which has no variance
        return np.zeros((1, 2))
    if method == "PCA":
        flat = PCA(min(2, *x.shape)).fit_transform(x)
        return np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))
    kept = np.random.default_rng(0).permutation(len(x))[:2000]  # t-SNE is slow on more
    flat = np.full((len(x), 2), np.nan)
    flat[kept] = TSNE(perplexity=min(30, len(kept) / 4), init="pca", random_state=0).fit_transform(
        x[kept]
    )
    return flat


def balance(steps: list[dict[str, float]]) -> str:
    """λ, the gradient norm that sets it, the loss terms, and the effective batch over steps."""
    figure, axes = new_figure(11, 5.6, 2, 2)
    _lines(
        axes[0, 0],
        steps,
        {"lambda_ce": "λ_CE, classification"},
        "Weight of the classification loss",
    )
    _lines(axes[0, 1], steps, {"lambda_sc": "λ_SC"}, "Weight of the contrastive terms", first=3)
    _lines(axes[1, 0], steps, {"gradient_norm": "g"}, "Gradient norm g", first=2)
    names = {
        "classification": "classification",
        "contrastive": "contrastive",
        "bottleneck": "bottleneck",
    }
    _lines(axes[1, 1], steps, names, "Terms of the loss")
    for axis in axes[1]:
        axis.set_xlabel("step")
    return inline(figure)


def _lines(
    axis: Any, steps: list[dict[str, float]], names: dict[str, str], title: str, first: int = 1
) -> None:
    for i, (key, label) in enumerate(names.items()):
        values = np.array([step.get(key, np.nan) for step in steps])
        if np.isnan(values).all():
            continue
        axis.plot(values, color=colour(first + i), alpha=0.25, lw=0.8)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.plot(_smoothed(values), color=colour(first + i), label=label, lw=1.6)
    axis.set_title(title)
    if len(names) > 1:
        axis.legend(fontsize=8)


def _smoothed(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    width = max(1, len(values) // 25)
    padded = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
    return np.convolve(padded, np.ones(width) / width, "valid")


def robust_weights(found: Predictions, steps: list[dict[str, float]]) -> str:
    """The run's effective sample size, and what each objective makes of the test losses."""
    figure, axes = new_figure(11, 3.3, 1, 2)
    _lines(axes[0], steps, {"effective_sample_size": "ESS"}, "Effective sample size of a batch")
    axes[0].set(xlabel="step", ylim=(0, None))
    losses = cross_entropy(found.logits.double(), found.labels, reduction="none")
    losses = losses.sort(descending=True).values
    share = 100 * (np.arange(len(losses)) + 0.5) / len(losses)
    axes[1].axhline(1, color=colour(2), ls="--", lw=1, label="uniform")
    for i, (objective, level) in enumerate(_OBJECTIVES):
        weights = dro_weights(losses, objective, level) * len(losses)
        axes[1].plot(
            share, weights, color=colour((0, 1, 4)[i]), label=f"{objective}, level {level}", lw=1.8
        )
    axes[1].set(
        title="DRO weights over the test losses",
        xlabel="clips, hardest first, %",
        ylabel="weight × n",
    )
    axes[1].set_yscale("symlog", linthresh=1)  # the hardest clip may weigh as much as forty
    axes[1].yaxis.set_major_formatter(PLAIN)
    axes[1].legend(fontsize=8)
    return inline(figure)


def clip_gates(frames: Frames, gates: list[Gates]) -> str:
    """A clip's frames, the temporal gate of every stage, and the applied gate over the frames."""
    rows = 2 + len(gates)
    ratios = {"height_ratios": [1, 1.5, *[1] * len(gates)], "width_ratios": [60, 1]}
    # the second column keeps legend and colour bars out of the frames' alignment
    figure, cells = new_figure(11, 0.9 * rows, rows, 2, **ratios)
    (axes, sides) = cells.T
    axes[0].imshow(_strip(frames), aspect="auto")
    _temporal(axes[1], gates, len(frames))
    handles, labels = axes[1].get_legend_handles_labels()
    sides[1].legend(handles, labels, fontsize=7, loc="center", handlelength=1)
    for i, gate in enumerate(gates):
        _heat(axes[2 + i], sides[2 + i], frames, gate, f"stage {i + 1}")
    for axis in (axes[0], *axes[2:]):
        axis.set(xticks=[], yticks=[])
        axis.grid(visible=False)
    for side in sides[:2]:
        side.set_axis_off()
    return inline(figure, picture=True)


def _strip(frames: Any) -> np.ndarray[Any, Any]:
    """Frames side by side."""
    return np.concatenate(list(frames), axis=1)


def _temporal(axis: Any, gates: list[Gates], count: int) -> None:
    for i, gate in enumerate(gates):
        # a stage may have fewer frames than the clip
        values = interpolate(gate.temporal[None, :1].float(), count, mode="linear")[0, 0]
        middle = np.arange(count) + 0.5
        label = f"stage {i + 1}"
        axis.plot(middle, values - values.mean(), "o-", ms=3, color=colour(i), label=label)
    axis.set(xlim=(0, count), xticks=[], ylabel="temporal gate\n− its mean")


def _heat(axis: Any, side: Any, frames: Frames, gate: Gates, label: str) -> None:
    """The applied gate, both branches together, over grey frames on the stage's own range."""
    size = frames.shape[:3]
    large = interpolate(gate.applied[None, :1].float(), size, mode="trilinear")[0, 0]
    heat = _strip(large.numpy())
    axis.imshow(_strip(frames.mean(-1)), cmap="gray", aspect="auto", vmin=0, vmax=255)
    image = axis.imshow(heat, cmap="magma", aspect="auto", alpha=0.55)
    ticks = [heat.min(), heat.max()]
    axis.figure.colorbar(image, cax=side, ticks=ticks, format="%.2f")
    side.tick_params(labelsize=7, length=0)
    axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
