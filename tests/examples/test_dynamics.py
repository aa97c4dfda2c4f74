"""Photographs in motion: the flow, the clips, the split of the people, the video files."""

import csv
import shutil

import numpy as np
import pytest
import torch

from examples.train.data.build_dynamics import main as build
from examples.train.data.dynamics import (
    CLASSES,
    FRAMES,
    LONDON,
    SOURCES,
    DynamicsClips,
    intensity,
    part_of,
    people,
    sources_of,
)
from examples.train.data.flow import blur, flow, warp
from examples.train.data.lists import read_list
from examples.train.run import main as train
from hdf_modules import HDFError


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """A folder of twelve people, three a source."""
    folder = tmp_path_factory.mktemp("faces")
    chosen = people()[:12]
    header, *rows = (LONDON / "people.csv").read_text().splitlines()
    names = {one.name for one in chosen}
    kept = [row for row in rows if row.split(",")[0] in names]
    (folder / "people.csv").write_text("\n".join([header, *kept]) + "\n")
    for one in chosen:
        for kind in ("neutral", "smiling"):
            shutil.copy(LONDON / f"{one.name}_{kind}.jpg", folder)
    return folder


@pytest.mark.parametrize("shift", [(3.0, -2.0), (-5.5, 0.5)])
def test_flow_finds_a_shift(shift):
    first = blur(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), 2.0)
    motion = torch.tensor(shift)[:, None, None].expand(2, 2, 64, 64)
    second = warp(first, -motion)
    found = flow(first, second)[:, :, 12:-12, 12:-12].mean((0, 2, 3))
    torch.testing.assert_close(found, torch.tensor(shift), rtol=0, atol=0.3)


def test_flow_joins_the_two_pictures_of_a_person(faces):
    from examples.train.data.dynamics import _load  # noqa: PLC0415

    neutral, smiling = (
        torch.nn.functional.interpolate(_load(faces, kind)[:4], (80, 80), mode="area")
        for kind in ("neutral", "smiling")
    )
    apart = (neutral - smiling).abs().mean()
    joined = (neutral - warp(smiling, flow(neutral, smiling))).abs().mean()
    assert joined < 0.6 * apart


def test_motion_is_the_class_and_no_frame_is():
    draws = {
        name: [intensity(name, np.random.default_rng(i)) for i in range(200)] for name in CLASSES
    }
    for name, curves in draws.items():
        ends = np.array([[curve[0], curve.max(), curve[-1]] for curve in curves])
        assert ends.min() >= 0
        assert ends.max() <= 1
        up = {"neutral": (0, 0, 0), "smile": (1, 1, 1), "onset": (0, 1, 1), "offset": (1, 1, 0)}
        for column, high in enumerate(up.get(name, (0, 1, 0))):
            assert np.all(ends[:, column] > 0.4) if high else np.all(ends[:, column] < 0.2), name


def test_people_are_split_before_anything_else():
    filmed = sources_of(seed=3)
    everyone = [one for cast in filmed.values() for one in cast]
    assert sorted(one.name for one in everyone) == sorted(one.name for one in people())
    assert sources_of(seed=4) != filmed
    parts = {
        s: {one.name for c in filmed.values() for one in part_of(c, s)}
        for s in ("train", "val", "test")
    }
    assert sum(map(len, parts.values())) == len(set().union(*parts.values())) == len(everyone)
    for split, names in parts.items():
        clips = DynamicsClips(split, 300, seed=3).clips
        assert {clip.name.split("/")[1][:3] for clip in clips} <= names


def test_any_prefix_is_the_same_and_balanced(faces):
    longer, shorter = (DynamicsClips("all", n, 24, folder=faces) for n in (150, 40))
    assert longer.clips[:40] == shorter.clips
    assert len({clip.name for clip in longer.clips}) == 150
    counts = np.bincount([clip.label for clip in longer.clips[:60]])
    assert counts.max() - counts.min() <= 5
    np.testing.assert_array_equal(longer.frames(7), shorter.frames(7))
    assert longer.frames(7, lambda n: np.array([0, n - 1])).shape == (2, 24, 24, 3)


def test_sources_film_as_they_say(faces):
    shown = {}
    for name in SOURCES:
        clips = DynamicsClips("all", 15, 32, (name,), folder=faces)
        shown[name] = np.stack(clips.render()).astype(float)
    assert np.ptp(shown["grey"], axis=-1).mean() < 8 < np.ptp(shown["tinted"], axis=-1).mean()
    assert shown["soft"].std() < 0.8 * shown["plain"].std()
    steps = np.abs(np.diff(shown["grey"], axis=1)).mean((0, 2, 3, 4))
    assert steps[::2].max() < steps[1::2].min(), "every picture is shown twice"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "exam"}, "split: expected one of train, val, test, all"),
        ({"sources": ("plain", "zoo")}, r"sources: expected some of plain, .*found \['zoo'\]"),
        ({"length": 0}, "length, size: expected at least 1 clip of 8 pixels"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(HDFError, match=message):
        DynamicsClips(**options)


def test_a_folder_without_faces_is_named(tmp_path, faces):
    with pytest.raises(HDFError, match=r"--faces: use the .*expected a folder with people.csv"):
        people(tmp_path)
    (tmp_path / "people.csv").write_text((faces / "people.csv").read_text())
    with pytest.raises(HDFError, match="--faces: expected a neutral and a smiling picture of each"):
        people(tmp_path)


def test_video_files_and_lists_are_what_the_readers_know(tmp_path, faces):
    output = tmp_path / "built"
    build(["--faces", str(faces), "--output", str(output), "--draws", "1", "--size", "32"])
    with (output / "people.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    for source in SOURCES:
        lists = [output / f"{kind}_{source}.txt" for kind in ("without", "only")]
        rest, only = read_list(lists, output, classes=CLASSES, size=32)
        assert (len(rest.rows), len(only.rows)) == (45, 15)
        names = [{row.path.name[:3] for row in part.rows} for part in (rest, only)]
        assert not names[0] & names[1]
        assert names[1] == {row["person"] for row in rows if row["source"] == source}
        clips = DynamicsClips("all", 15, 32, (source,), folder=faces)
        order = [clip.name for clip in clips.clips]
        row = only.rows[4]
        rendered = clips.frames(order.index(f"{source}/{row.path.stem}"))
        read = only.frames(4)
        assert read.shape == (FRAMES, 32, 32, 3)
        assert np.abs(read.astype(float) - rendered).mean() < 12
    assert "CC BY 4.0" in (output / "NOTICE.txt").read_text()


def test_a_run_trains_on_them_by_default(tmp_path):
    small = ["--clips", "24", "--size", "16", "--frames", "4", "--batch-size", "8", "--epochs", "1"]
    left_out = ["--test-sources", "grey", "--device", "cpu", "--workers", "1"]
    train(["--output", str(tmp_path), *small, *left_out])
    report = (tmp_path / "report.html").read_text()
    assert all(name in report for name in CLASSES)
    assert "CC BY 4.0" in report
