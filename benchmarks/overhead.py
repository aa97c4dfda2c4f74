"""What attention costs: python -m benchmarks.overhead [PART ...] [--device cuda] [--help].

Parts, all by default. Each puts its rows into overhead_DEVICE.json in the output folder
(benchmarks/results); then the table overhead_DEVICE.md and the plots overhead_DEVICE_*.png are made
from that file alone, which the part `report` does on its own.

modules    the module at the shapes behind X3D's stages, eager and compiled, in float32, bfloat16
           and channels_last_3d, against benchmarks/literal.py (the released order of operations),
           and in floors: the time of reading x twice and writing it once, measured beside it.
           Bytes kept for backward beyond x itself, as a share of x.
sweep      cost along batch, time, channels and side.
backbones  X3D-S, r3d_18, resnet18 and ViT-S (frames folded into the batch) at 16×112²: bare, with
           ours, and with a literal version, SE, CBAM, ECA (timm's), a non-local block and a
           temporal shift behind the same stages. --backbones picks some, so that pieces can be run
           apart; rows that are not measured again are kept. The non-local block is timed with
           the bare network alone: it fills gigabytes, and slowed what ran next to it.
import     time of `import hdf_modules` beyond `import torch`.
report     only the table and the plots.

Medians of interleaved runs in one process, which keeps the memory it frees (glibc's mallopt), so
that no case pays for pages that another returned. `modules` and `sweep` go through so many copies
of x that none is in a cache, and do not count the first of a case's four calls in a round. Ratios
are medians over rounds of the ratio within a round. Runs in which the interquartile range of the
first case is more than --spread of its median are repeated twice, then refused. On a processor: two
threads unless --threads says otherwise. On a GPU (--device cuda, which also takes --batch):
compiled means CUDA graphs (mode="reduce-overhead").
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.cost import backbones, modules, report
from benchmarks.cost.timing import keep_freed_memory
from benchmarks.machine import describe

Row = dict[str, Any]


def _modules(options: argparse.Namespace) -> list[Row]:
    shapes = modules.SHAPES[: options.shapes]
    if options.batch:
        shapes = tuple((options.batch, *shape[1:]) for shape in shapes)
    return [
        modules.module_row(
            shape, options.device, options.rounds, options.spread, compiled=not options.eager
        )
        for shape in shapes
    ]


def _sweep(options: argparse.Namespace) -> list[Row]:
    return modules.sweep_rows(options.device, options.rounds, options.spread)


def _backbones(options: argparse.Namespace) -> list[Row]:
    rows = []
    for name in options.backbones:
        variants = [v for v in options.variants if not (options.eager and "compiled" in v)]
        rows += backbones.backbone_rows(
            name,
            variants,
            clips=options.clips,
            device=options.device,
            rounds=options.rounds,
            limit=options.spread,
            train=not options.no_training,
        )
    return rows


def _import(options: argparse.Namespace) -> list[Row]:
    return [modules.import_row()]


PARTS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "modules": _modules,
    "sweep": _sweep,
    "backbones": _backbones,
    "import": _import,
}


def merge(before: dict[str, Any] | None, rows: list[Row]) -> dict[str, Any]:
    """Replace networks' rows of the same name and keep the others of the same machine."""

    def key(row: Row) -> tuple[str, str]:
        return row["backbone"], row["variant"]

    machine = describe()
    kept = before["rows"] if before is not None and before["machine"] == machine else []
    merged = {key(row): row for row in [*kept, *rows]}
    return {"machine": machine, "rows": list(merged.values())}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="overhead.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}, report")
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=15)
    add("--spread", type=float, default=0.5, help="repeat runs less stable than this")
    add("--batch", type=int, help="of every shape of `modules`")
    add("--shapes", type=int, default=len(modules.SHAPES), help="how many of them")
    add("--eager", action="store_true", help="compile nothing")
    add("--backbones", nargs="+", default=list(backbones.BACKBONES), choices=backbones.BACKBONES)
    add("--variants", nargs="+", default=list(backbones.VARIANTS), choices=backbones.VARIANTS)
    add("--clips", type=int, default=1, help="in a batch of `backbones`")
    add("--no-training", action="store_true", help="inference alone in `backbones`")
    add("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    unknown = [part for part in options.parts if part not in (*PARTS, "report")]
    if unknown:
        parser.error(f"PART: expected some of {', '.join(PARTS)}, report; found {unknown}")
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    options.output.mkdir(parents=True, exist_ok=True)
    record = options.output / f"overhead_{options.device}.json"
    results = json.loads(record.read_text()) if record.exists() else {}
    for part in options.parts or PARTS:
        if part in PARTS:
            rows = PARTS[part](options)
            whole = {"machine": describe(), "rows": rows}
            results[part] = merge(results.get(part), rows) if part == "backbones" else whole
            record.write_text(json.dumps(results, indent=1) + "\n")
    report.write(results, options.output, record.stem)


if __name__ == "__main__":
    main()
