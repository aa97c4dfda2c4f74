"""Table and plots of what attention costs, from the record alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.attention.modules import OURS
from benchmarks.markdown import page, table
from benchmarks.record import Record, Rows
from examples.train.report.style import PLAIN, colour, new_figure, styled

KINDS = ("forward", "forward+backward")
_PASSES = ("forward", "backward")
_COUNTED = ("launches", "MB read", "MB written", "floors")


def write(record: Record, path: Path) -> None:
    """Draw table and plots beside the record; parts that were not run are left out."""
    text = page("What attention costs", "attention", record, _TABLES)
    path.with_suffix(".md").write_text(text)
    with styled():
        for part in record.keys() & _PLOTS.keys():
            figure = _PLOTS[part](record[part]["rows"])
            figure.savefig(path.with_name(f"{path.stem}_{part}.png"), dpi=80)


def _size(row: dict[str, Any]) -> str:
    return "×".join(str(n) for n in row["shape"])


def _modules(rows: Rows) -> list[str]:
    names = [name for name in OURS if f"{name} forward" in rows[0]["ms"]]
    head = ["B×C×T×H×W", "floor, ms", "literal, ms"]
    head += [f"{name}, ms (times faster)" for name in names]
    head += [f"floors, {name}" for name in names]
    head += ["bf16, ms", "channels_last, ms", "kept, % of x", "literal keeps"]
    head += ["peak, times x", "literal's"]
    lines = ["## The module alone", ""]
    for kind in KINDS:
        cells = [_module_cells(row, names, kind) for row in rows]
        columns = head if kind == KINDS[0] else [h for h in head if not h.startswith("floor")]
        lines += [f"### {kind.capitalize()}", "", *table(columns, cells), ""]
        for name in names:
            mean = statistics.geometric_mean(row["speed"][f"{name} {kind}"] for row in rows[:4])
            lines += [
                f"{name.capitalize()}, geometric mean of the first four: {mean:.1f} times.",
                "",
            ]
    return lines[:-1]


def _module_cells(row: dict[str, Any], names: list[str], kind: str) -> list[str]:
    ms, forward = row["ms"], kind == KINDS[0]
    cells = [_size(row), *[f"{ms['floor']:.2f}"] * forward, f"{ms[f'literal {kind}']:.1f}"]
    for name in names:
        cells.append(f"{ms[f'{name} {kind}']:.2f} ({row['speed'][f'{name} {kind}']:.1f})")
    cells += [f"{row['floors'][f'{name} forward']:.1f}" for name in names if forward]
    cells += [f"{ms[f'{name} {kind}']:.2f}" for name in ("bf16", "channels_last")]
    cells += [f"{100 * row['saved'][name]:.1f}" for name in ("ours", "literal")]
    return [*cells, *(f"{row['peak'][name]:.1f}" for name in ("ours", "literal"))]


def _sweep(rows: Rows) -> list[str]:
    head = ["axis", "value", "forward, ms", "forward+backward, ms"]
    cells = [
        [row["axis"], str(row["value"]), *(f"{row['ms'][kind]:.2f}" for kind in KINDS)]
        for row in rows
    ]
    return ["## Cost along each axis", "", *table(head, cells)]


def _counts(rows: Rows) -> list[str]:
    head = ["B×C×T×H×W", "dtype", *(f"{kind}: {what}" for kind in _PASSES for what in _COUNTED)]
    cells = []
    for row in rows:
        line = [_size(row), row["dtype"]]
        for kind in _PASSES:
            found = row[kind]
            line += [str(found["launches"]), f"{found['read_mb']:.1f}"]
            line += [f"{found['written_mb']:.1f}", f"{found['floors']:.2f}"]
        cells.append(line)
    note = (
        "Forward's floor reads x twice, backward's x once and its gradient twice; each writes once."
    )
    return ["## Launches of the kernels on a GPU", "", note, "", *table(head, cells, text=(0, 1))]


def _backbones(rows: Rows) -> list[str]:
    lines = ["## Behind every stage of a backbone, 16×112²", ""]
    for (name, clips, precision), chosen in _networks(rows).items():
        head = ["variant", "parameters", "GFLOPs", "inference, ms", "ratio", "clips/s", "peak, MB"]
        head += ["training, ms", "ratio", "peak, MB", "kept, MB"] * ("training" in chosen[0])
        cells = [_backbone_cells(row) for row in chosen]
        title = f"### {name}, {clips} clip(s), {precision}"
        lines += [title, "", *table(head, cells), ""]
    return lines[:-1]


def _networks(rows: Rows) -> dict[tuple[str, int, str], Rows]:
    """Rows by network, number of clips and precision."""
    found: dict[tuple[str, int, str], Rows] = {}
    for row in rows:
        place = row["backbone"], row["clips"], row["precision"]
        found.setdefault(place, []).append(row)
    return found


def _backbone_cells(row: dict[str, Any]) -> list[str]:
    cells = [row["variant"], f"{row['parameters']:,}", f"{row['gflops']:.2f}"]
    if "inference" in row:
        found = row["inference"]
        cells += [f"{found['ms']:.1f}", f"{found['ratio']:.3f}"]
        cells += [f"{found['clips_per_second']:.1f}", f"{found['peak_mb']:.0f}"]
    if "training" in row:
        found = row["training"]
        cells += [f"{found['ms']:.1f}", f"{found['ratio']:.3f}", f"{found['peak_mb']:.0f}"]
        cells += ["" if row["saved_mb"] is None else f"{row['saved_mb']:.0f}"]
    return cells


def _import(rows: Rows) -> list[str]:
    text = f"`import hdf_modules` beyond `import torch`: {rows[0]['ms']:.0f} ms."
    return ["## Import", "", text]


def _plot_modules(rows: Rows) -> Any:
    figure, axes = new_figure(10, 3.8, 1, 2)
    for axis, kind in zip(axes, KINDS, strict=True):
        names = [n for n in ("literal", "eager", "compiled") if f"{n} {kind}" in rows[0]["ms"]]
        width = 0.8 / len(names)
        for index, name in enumerate(names):
            values = [row["ms"][f"{name} {kind}"] / row["ms"]["floor"] for row in rows]
            places = [i + (index - (len(names) - 1) / 2) * width for i in range(len(rows))]
            axis.bar(places, values, width, color=colour(index), label=name)
        axis.axhline(1, color="black", linewidth=1, linestyle=":")
        axis.set(title=f"{kind.capitalize()}, floors", yscale="log")
        axis.yaxis.set_major_formatter(PLAIN)
        labels = [_size(row) for row in rows]
        axis.set_xticks(range(len(rows)), labels, rotation=25, ha="right", fontsize=8)
        axis.set_ylim(0.8, 4 * axis.get_ylim()[1])  # room for the legend
        axis.legend(ncols=len(names), loc="upper left")
    return figure


def _plot_sweep(rows: Rows) -> Any:
    figure, axes = new_figure(12, 3.4, 1, 4)
    for axis, name in zip(axes, dict.fromkeys(row["axis"] for row in rows), strict=True):
        chosen = [row for row in rows if row["axis"] == name]
        sizes = [row["elements"] for row in chosen]
        for index, kind in enumerate(KINDS):
            values = [row["ms"][kind] for row in chosen]
            axis.plot(sizes, values, "o-", color=colour(index), label=kind)
            line = [values[-1] * size / sizes[-1] for size in sizes]
            axis.plot(sizes, line, ":", color=colour(index))
        axis.set(title="height × width" if name == "side" else name, ylabel="ms", ylim=(0, None))
    axes[0].legend(fontsize=8)
    return figure


def _plot_backbones(rows: Rows) -> Any:
    networks = _networks(rows)
    figure, axes = new_figure(3.4 * len(networks) + 1, 3.6, 1, len(networks), squeeze=False)
    for axis, ((name, clips, precision), found) in zip(axes.flat, networks.items(), strict=True):
        chosen = [row for row in found if row["variant"] != "bare"]
        for index, kind in enumerate(("inference", "training")):
            if kind in chosen[0]:
                values = [100 * (row[kind]["ratio"] - 1) for row in chosen]
                places = [i + 0.4 * index - 0.2 for i in range(len(chosen))]
                axis.barh(places, values, 0.4, color=colour(index), label=kind)
        axis.set_yticks(range(len(chosen)), [row["variant"] for row in chosen])
        axis.invert_yaxis()
        title = name if clips == 1 else f"{name}, {clips} clips"
        title += "" if precision == "float32" else f", {precision}"
        axis.set(title=title, xlabel="% of time beyond the bare", xscale="symlog")
        axis.xaxis.set_major_formatter(PLAIN)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, fontsize=8)
    return figure


_TABLES: dict[str, Callable[[Rows], list[str]]] = {
    "modules": _modules,
    "backbones": _backbones,
    "sweep": _sweep,
    "counts": _counts,
    "import": _import,
}
_PLOTS: dict[str, Callable[[Rows], Any]] = {
    "modules": _plot_modules,
    "sweep": _plot_sweep,
    "backbones": _plot_backbones,
}
