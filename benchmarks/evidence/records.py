"""Finished runs: one JSON file each, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.evidence.settings import Preset, Setting

Record = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A run that is to be done: a row of the table, a seed and the source left out."""

    name: str
    setting: Setting
    preset: Preset
    held_out: str
    seed: int

    @property
    def configuration(self) -> Record:
        """All that the result depends on, except the code; not what only the table needs."""
        setting = asdict(self.setting)
        del setting["label"]
        preset = asdict(self.preset)
        del preset["table"], preset["seeds"], preset["main_seeds"], preset["root"]
        later = (setting, "frame_gain", False), (preset, "data", "drawn")
        for options, name, before in later:  # what there was not yet changes no key
            if options[name] == before:
                del options[name]
        return {
            "setting": setting,
            "preset": preset,
            "held_out": self.held_out,
            "seed": self.seed,
        }

    @property
    def key(self) -> str:
        """Name of the record; another configuration has another key."""
        text = json.dumps(self.configuration, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        return f"{self.name}--{self.held_out}--{self.seed}--{digest}"


def path(folder: Path, job: Job) -> Path:
    """Where the record of a job is."""
    return folder / f"{job.key}.json"


def save(folder: Path, job: Job, result: Record) -> None:
    """Write a record: first beside its place, then into it."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{job.key}.{os.getpid()}.part"
    record = {"name": job.name, "label": job.setting.label, **job.configuration, **result}
    part.write_text(json.dumps(record) + "\n")
    part.replace(path(folder, job))


def load(folder: Path, jobs: list[Job]) -> dict[str, list[Record]]:
    """Read the records of those jobs that are done, by row, in the order of the jobs."""
    found: dict[str, list[Record]] = {}
    for job in jobs:
        if path(folder, job).exists():
            found.setdefault(job.name, []).append(json.loads(path(folder, job).read_text()))
    return found
