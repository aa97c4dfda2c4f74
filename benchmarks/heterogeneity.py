"""Does it help under heterogeneity? Ablation on drawn face clips of several sources.

    python benchmarks/heterogeneity.py run cpu        # under 90 minutes on 2 cores; resumes
    python benchmarks/heterogeneity.py run gpu        # r3d_18 at 112², one GPU
    python benchmarks/heterogeneity.py search cpu     # hyper-parameters, on validation alone
    python benchmarks/heterogeneity.py report cpu     # table and plots from the records

What is trained. Each row of the table changes one thing of the baseline: cross-entropy under AdamW
with one learning-rate cycle, from random weights. There are few clips and enough epochs that the
baseline knows nearly all its training clips and far fewer of a new source, as on the recordings
that the method is for; where a network does not fit yet, whatever slows fitting loses, and says
nothing of generalization. All rows of a seed have the same initial weights, clips, order of the
clips, epochs, batches and learning rate, and the last epoch counts; SAM takes two passes per step,
so ``ce-long`` has twice the epochs. Run i of a row has seed i and leaves out source i modulo six:
five runs of every row, and twelve, two for every source, of the baseline and of the whole method,
whose difference is the main result. Training clips have DFEW's long-tailed mix of classes; every
source has its own people and performances.

What is measured, on clips of people nobody trained on, as many of each class:

- seen: the five sources of the training;
- unseen: the source left out;
- corrupted: clips of the seen sources under ten corruptions at five severities, none of which is
  an augmentation of the training. "Corruption loss" is the clean UAR less the mean of the fifty.

UAR is the mean recall of the classes, WAR the mean weighted by DFEW's mix. "Worst source" is the
least UAR of the six sources, "worst class" the least recall on the source left out. Differences
are paired by seed and source left out, with 95% bootstrap intervals.

Hyper-parameters. ``search`` runs its candidates and prints them by their paired gain in UAR on
validation clips: half from the seen sources, half from two styles, night and television, that are
neither trained nor tested on. It measures no test clip. The chosen values are in
evidence/settings.py.

Resuming. Every finished run is one JSON file under ``runs/heterogeneity``, named by row, source
left out, seed and a digest of the whole configuration; what is there is not run again. Several
machines share the work by ``--shard 1/3`` and so on; then bring the files into one folder.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

import torch  # noqa: E402 (the paths come first)

from benchmarks.evidence import clips, records, report, searched, training  # noqa: E402
from benchmarks.evidence.presets import PRESETS, Preset  # noqa: E402
from benchmarks.evidence.records import Job  # noqa: E402
from benchmarks.evidence.settings import ROWS, SEARCH, Setting  # noqa: E402


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    options = _parse(arguments)
    preset = PRESETS[options.preset]
    if options.seeds:
        preset = replace(preset, seeds=options.seeds, main_seeds=options.seeds)
    trial = replace(preset, seeds=options.seeds or 1)

    def selected(settings: dict[str, Setting], budget: Preset) -> list[Job]:
        return plan({name: settings[name] for name in options.only or settings}, budget)

    folder = options.folder / options.preset
    if options.command == "report":
        found = records.load(folder / "runs", selected(ROWS, preset))
        tried = records.load(
            folder / "search", plan(SEARCH, replace(trial, seeds=preset.main_seeds))
        )
        report.write(found, tried, (ROWS, SEARCH), preset, options.output)
    elif options.command == "search":
        execute(selected(SEARCH, trial), folder / "search", options)
        searched.show(records.load(folder / "search", selected(SEARCH, trial)))
    else:
        execute(selected(ROWS, preset), folder / "runs", options)


def plan(settings: dict[str, Setting], preset: Preset) -> list[Job]:
    """List the runs, one seed of every row before the next seed."""
    return [
        Job(name, setting, preset, clips.NAMES[seed % len(clips.NAMES)], seed)
        for seed in range(max(map(preset.runs, settings)))
        for name, setting in settings.items()
        if seed < preset.runs(name)
    ]


def execute(jobs: list[Job], folder: Path, options: argparse.Namespace) -> None:
    """Do what is not done yet, ``--workers`` runs at a time, one thread each."""
    share, shares = options.shard
    jobs = [job for job in jobs if job.seed % shares == share - 1]
    open_jobs = [job for job in jobs if not records.path(folder, job).exists()]
    mine = open_jobs[: options.limit]
    on_gpu = PRESETS[options.preset].device == "cuda"
    workers = options.workers or (4 if on_gpu else os.cpu_count() or 1)
    do = partial(_do, folder=folder, cache=options.folder / "clips", test=options.command == "run")
    print(f"{len(jobs) - len(open_jobs)} of {len(jobs)} runs done, {len(mine)} to do", flush=True)
    if workers == 1 or not mine:
        for job in mine:
            print(do(job), flush=True)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        names = (*clips.NAMES, *clips.VALIDATION_NAMES)
        prepare = partial(clips.prepare, PRESETS[options.preset], options.folder / "clips")
        list(pool.map(prepare, names))
        for line in pool.map(do, mine):
            print(line, flush=True)


def _do(job: Job, *, folder: Path, cache: Path, test: bool) -> str:
    torch.set_num_threads(1)
    result = training.run(job.setting, job.preset, job.held_out, job.seed, cache, test=test)
    records.save(folder, job, result)
    found = result["test" if test else "validation"]
    uars = f"UAR {found['seen']['uar']:.1f} seen, {found['unseen']['uar']:.1f} unseen"
    return f"{job.name}, without {job.held_out}, seed {job.seed}: {uars}"


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="heterogeneity.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("command", choices=("run", "search", "report"))
    add("preset", choices=PRESETS)
    add("--only", nargs="+", metavar="ROW", help="rows, or candidates of the search; default all")
    add("--workers", type=int, help="runs at a time, a thread each; default one a core, 4 on a GPU")
    add("--seeds", type=int, help="runs of each row; default the preset's, of each candidate 1")
    add("--limit", type=int, help="stop after this many runs")
    add(
        "--shard",
        type=_shard,
        default=(1, 1),
        metavar="I/N",
        help="the I-th of N shares of the seeds",
    )
    add("--folder", type=Path, default=ROOT / "runs/heterogeneity", help="of clips and records")
    add("--output", type=Path, default=ROOT / "benchmarks/results", help="of table and plots")
    options = parser.parse_args(arguments)
    known = SEARCH if options.command == "search" else ROWS
    unknown = [name for name in options.only or () if name not in known]
    if unknown:
        parser.error(f"--only: expected some of {', '.join(known)}, found {', '.join(unknown)}")
    return options


def _shard(text: str) -> tuple[int, int]:
    share, _, shares = text.partition("/")
    if not (share.isdigit() and shares.isdigit() and 1 <= int(share) <= int(shares)):
        raise argparse.ArgumentTypeError(f"expected I/N with 1 <= I <= N, found {text}")
    return int(share), int(shares)


if __name__ == "__main__":
    main()
