"""The drawn clips: deterministic, in DFEW's mix, and different where they should be."""

from collections import Counter

import numpy as np
import pytest

from examples.train.data.expressions import CLASSES, DFEW_MIX, EMFACS, intensities
from examples.train.data.face import OCCLUSIONS, draw, sample_identity
from examples.train.data.styles import SOURCES, compress
from examples.train.data.synthetic import SyntheticClips
from hdf_modules import HDFError


def rng(seed=0):
    return np.random.default_rng(seed)


def test_a_clip_depends_on_its_index_alone():
    short, long = SyntheticClips("train", 6, 24), SyntheticClips("train", 40, 24)
    assert short.clips == long.clips[:6]
    for index in (5, 0, 3):
        np.testing.assert_array_equal(short.frames(index), long.frames(index))


def test_rendering_in_processes_changes_nothing():
    clips = SyntheticClips("val", 4, 16)
    for alone, together in zip(clips.render(1), clips.render(2), strict=True):
        np.testing.assert_array_equal(alone, together)


def test_splits_seeds_and_indices_differ():
    frames = [
        SyntheticClips("train", 2, 16).frames(0),
        SyntheticClips("train", 2, 16).frames(1),
        SyntheticClips("test", 2, 16).frames(0),
        SyntheticClips("train", 2, 16, seed=1).frames(0),
    ]
    for i, one in enumerate(frames):
        for other in frames[i + 1 :]:
            assert one.shape != other.shape or not np.array_equal(one, other)


@pytest.mark.parametrize("length", [100, 1000])
def test_every_prefix_has_the_class_mix(length):
    counts = Counter(clip.label for clip in SyntheticClips("train", length).clips)
    for label, share in enumerate(DFEW_MIX):
        assert abs(counts[label] - share * length) <= 3


def test_all_sources_occur_and_shape_the_pixels():
    names = tuple(style.name for style in SOURCES)
    clips = SyntheticClips("train", 120, 16, names)
    assert {clip.group for clip in clips.clips} == set(range(len(names)))
    frames = [SyntheticClips("train", 1, 32, (name,)).frames(0) for name in names]
    assert len({frame.mean().round(2) for frame in frames}) == len(names)


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "neutral"])
def test_an_expression_moves_the_face_where_its_muscles_are(name):
    who = sample_identity(rng(3))
    rest = np.asarray(draw(who, {}, size=96)).astype(float)
    moved = np.asarray(draw(who, EMFACS[name], size=96)).astype(float)
    change = np.abs(moved - rest).sum(-1)
    eyes, mouth = change[25:52].sum(), change[55:82].sum()
    assert eyes > 0
    assert mouth > 0
    assert change[:10].sum() == 0


def test_expressions_rise_and_fall_and_neutral_stays():
    for seed in range(20):
        happy = [units.get(12, 0.0) for units in intensities(0, 20, rng(seed))]
        assert max(happy) <= 1
        assert np.abs(np.diff(happy)).max() < 0.5
        assert not set(intensities(CLASSES.index("neutral"), 5, rng(0))[0]) & {6, 15, 9}


@pytest.mark.parametrize("occlusion", OCCLUSIONS)
def test_an_occlusion_covers_part_of_the_face(occlusion):
    who = sample_identity(rng(1))
    clear = np.asarray(draw(who, {}, size=64))
    covered = np.asarray(draw(who, {}, size=64, occlusion=occlusion))
    share = (clear != covered).any(-1).mean()
    assert 0.005 < share < 0.4


def test_compression_keeps_shape_and_frames_apart():
    clip = np.stack([np.full((16, 16, 3), value, np.uint8) for value in (30, 220)])
    out = compress(clip, 40)
    assert out.shape == clip.shape
    np.testing.assert_allclose(out.astype(int), clip, atol=6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, r"split: expected one of train, val, test, found 'dev'"),
        ({"length": 0}, r"length, size: expected at least 1 clip of 8 pixels, found \(0, 40\)"),
        ({"sources": ("studio", "zoo")}, r"sources: expected some of .*found \['zoo'\]"),
        ({"sources": ()}, r"sources: expected some of .*found none"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(HDFError, match=message):
        SyntheticClips(**arguments)


def test_an_index_out_of_range_is_named():
    with pytest.raises(HDFError, match="index: expected 0 <= index < 3, found 3"):
        SyntheticClips("train", 3).frames(3)
