"""The options of the evidence, and what they start."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence import clips, gates_report, records, report, search, training
from benchmarks.evidence.records import Job
from benchmarks.evidence.sets import DATA
from benchmarks.evidence.settings import GATES, PRESETS, SEARCH, Preset, Setting
from benchmarks.machine import describe, line
from benchmarks.record import check
from examples.train.data.digits import WHERE
from examples.train.distributed import pick_device
from hdf_modules import HDFError

RUNS = Path(__file__).parents[2] / "runs/evidence"


def add_options(add: Callable[..., Any]) -> None:
    add("command", choices=("run", "search", "gates", "report"))
    add("preset", choices=PRESETS)
    add("--only", nargs="+", metavar="ROW", help="rows, or candidates of the search; default all")
    add("--workers", type=int, help="runs at a time, a thread each; default one a core, 4 on a GPU")
    add("--seeds", type=int, help="runs of each row; default the preset's, of each candidate 1")
    add("--limit", type=int, help="stop after this many runs")
    add("--shard", type=_shard, default=(1, 1), metavar="I/N", help="the I-th of N of the seeds")
    add("--device", help="kind of device to train on; default the preset's")
    add("--root", type=Path, help="folder of the recordings, for digits")
    add("--folder", type=Path, default=RUNS, help="of clips and of the search")


def run(options: Namespace) -> None:
    torch.set_num_threads(1)
    planned = preset = _on(options.device, PRESETS[options.preset])
    settings = {"search": SEARCH, "gates": GATES}.get(options.command, preset.rows)
    if options.command == "search" and preset.data != "drawn":
        raise ArgumentTypeError(f"search: has candidates for drawn faces, not for {preset.data}")
    check(options.only or (), settings, "--only")
    if options.command in ("run", "gates") and preset.data == "digits" and not options.root:
        raise ArgumentTypeError(f"--root: expected a folder of recordings, from {WHERE}")
    preset = replace(preset, root=options.root)
    if options.seeds:
        preset = replace(preset, seeds=options.seeds, main_seeds=options.seeds)
    trial = replace(preset, seeds=options.seeds or 1)

    def selected(budget: Preset) -> list[Job]:
        return plan({name: settings[name] for name in options.only or settings}, budget)

    folder, done = options.folder / options.preset, options.output / f"evidence_{options.preset}"
    if options.command == "report":
        found = records.load(done, selected(preset))
        candidates = plan(SEARCH, replace(trial, seeds=preset.main_seeds))
        tried = records.load(folder / "search", candidates)
        report.write(found, tried, preset, options.output / f"evidence_{options.preset}.json")
    elif options.command == "search":
        execute(selected(trial), folder / "search", options)
        search.show(records.load(folder / "search", selected(trial)))
    elif options.command == "gates":
        done = options.output / f"evidence_gates_{options.preset}"
        preset = replace(preset, corrupted_clips=0)
        execute(selected(preset), done, options)
        planned = replace(planned, corrupted_clips=0)
        found = records.load(done, plan(GATES, planned))
        gates_report.write(found, planned, done.with_suffix(".json"))
    else:
        execute(selected(preset), done, options)


def _on(device: str | None, preset: Preset) -> Preset:
    """The preset on a kind of device, which is part of its records; there has to be one."""
    kind = pick_device(device).type if device else preset.device
    if device not in (None, kind):
        hint = "choose one of several by CUDA_VISIBLE_DEVICES"
        raise HDFError("--device", f"a kind of device, as {kind}", device, hint)
    return replace(preset, device=kind)


def plan(settings: dict[str, Setting], preset: Preset) -> list[Job]:
    """List the runs, one seed of every row before the next seed."""
    return [
        Job(name, setting, preset, held_out(preset, seed), seed)
        for seed in range(max(map(preset.runs, settings)))
        for name, setting in settings.items()
        if seed < preset.runs(name)
    ]


def held_out(preset: Preset, seed: int) -> str:
    """The source that a run leaves out: in turn."""
    names = DATA[preset.data].names
    return names[seed % len(names)]


def execute(jobs: list[Job], folder: Path, options: Namespace) -> None:
    """Do what is not done yet, ``--workers`` runs at a time, one thread each."""
    share, shares = options.shard
    jobs = [job for job in jobs if job.seed % shares == share - 1]
    open_jobs = [job for job in jobs if not records.path(folder, job).exists()]
    mine = open_jobs[: options.limit]
    on_gpu = any(job.preset.device == "cuda" for job in mine)
    workers = options.workers or (4 if on_gpu else os.cpu_count() or 1)
    do = partial(
        _do,
        folder=folder,
        cache=options.folder / "clips",
        test=options.command != "search",
        gates=options.command == "gates",
    )
    print(line(describe()))
    print(f"{len(jobs) - len(open_jobs)} of {len(jobs)} runs done, {len(mine)} to do", flush=True)
    if workers == 1 or not mine:
        for job in mine:
            print(do(job), flush=True)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        chosen = DATA[PRESETS[options.preset].data]
        if not chosen.seeded:  # else a run renders its own
            prepare = partial(clips.prepare, PRESETS[options.preset], options.folder / "clips")
            list(pool.map(prepare, (*chosen.names, *chosen.validation_names)))
        for done in pool.map(do, mine):
            print(done, flush=True)


def _do(job: Job, *, folder: Path, cache: Path, **measured: bool) -> str:
    torch.set_num_threads(1)
    result = training.run(job.setting, job.preset, job.held_out, job.seed, cache, **measured)
    records.save(folder, job, result)
    found = result["test" if measured["test"] else "validation"]
    uars = f"UAR {found['seen']['uar']:.1f} seen, {found['unseen']['uar']:.1f} unseen"
    return f"{job.name}, without {job.held_out}, seed {job.seed}: {uars}"


def _shard(text: str) -> tuple[int, int]:
    share, _, shares = text.partition("/")
    if not (share.isdigit() and shares.isdigit() and 1 <= int(share) <= int(shares)):
        raise ArgumentTypeError(f"expected I/N with 1 <= I <= N, found {text}")
    return int(share), int(shares)
