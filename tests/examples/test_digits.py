"""Recordings as clips."""

import wave

import numpy as np
import pytest
import torch

from examples.train.data.clips import ClipDataset
from examples.train.data.digits import DigitClips, log_mel, mel_filters, read
from hdf_modules import HDFError


def record(path, samples, rate=8000):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for speaker in ("theo", "lucas"):
        for digit in range(10):
            for take in range(8):
                noise = 0.3 * rng.uniform(-1, 1, 1600 + 100 * take)
                record(tmp_path / f"{digit}_{speaker}_{take}.wav", noise)
    return tmp_path


def test_splits_share_no_recording_and_have_every_digit_as_often(root):
    names = {}
    for split, length in (("train", 50), ("val", 10), ("test", 20), ("all", 80)):
        clips = DigitClips(split, length, 16, ("theo",), 0, root).clips
        names[split] = {clip.name for clip in clips}
        assert np.bincount([clip.label for clip in clips]).tolist() == [length // 10] * 10
        assert all(clip.name.startswith(f"theo/{clip.label}_theo_") for clip in clips)
    assert names["all"] >= names["train"] | names["val"] | names["test"]
    assert len(names["train"] | names["val"] | names["test"]) == 80


def test_another_seed_has_other_recordings_and_a_longer_split_the_same_first(root):
    def names(length=20, seed=0):
        return [c.name for c in DigitClips("train", length, 16, ("theo",), seed, root).clips]

    assert names() == names()
    assert names(40)[:20] == names()
    assert set(names()) != set(names(seed=1))


def test_a_clip_has_a_frame_every_sixteen_milliseconds(root):
    clips = DigitClips("all", 80, 16, ("theo", "lucas"), 0, root)
    assert [clips.clips[i].group for i in (0, 159)] == [0, 1]
    for index, frames in ((0, clips.frames(0)), (159, clips.render()[159])):
        samples = len(read(root / f"{clips.clips[index].name.split('/')[1]}.wav"))
        assert frames.shape == ((samples // 32 + 1 - 16) // 4 + 1, 16, 16, 3)
        assert frames.dtype == np.uint8
        assert (frames == frames[..., :1]).all()
    whole = clips.frames(0)
    np.testing.assert_array_equal(whole[1, :, :12], whole[0, :, 4:])
    np.testing.assert_array_equal(clips.frames(0, lambda n: np.array([1, n - 1])), whole[[1, -1]])


def test_a_recording_shorter_than_a_frame_is_one_frame(tmp_path):
    record(tmp_path / "3_theo_0.wav", np.full(200, 0.5))
    for digit in {*range(10)} - {3}:
        record(tmp_path / f"{digit}_theo_0.wav", np.full(2000, 0.5))
    clips = DigitClips("all", 10, 16, ("theo",), 0, tmp_path)
    assert clips.frames(3).shape == (1, 16, 16, 3)


@pytest.mark.parametrize("hertz", [300, 1000, 2500])
def test_a_tone_is_in_the_band_around_it(hertz):
    tone = torch.sin(2 * torch.pi * hertz / 8000 * torch.arange(8000))
    levels = log_mel(tone, 16)
    assert levels.min() >= 0
    assert levels.max() == 1
    mel = 2595 * np.log10(1 + hertz / 700)
    band = mel / (2595 * np.log10(1 + 4000 / 700)) * 17 - 1
    assert levels.mean(1).argmax() == round(band)


def test_louder_recordings_look_alike():
    sound = torch.randn(4000)
    torch.testing.assert_close(log_mel(sound, 16), log_mel(0.1 * sound, 16))


def test_bands_overlap_by_half_and_leave_out_nothing():
    filters = mel_filters(16, 129, 8000)
    centres = filters.argmax(1)
    assert (centres.diff() > 0).all()
    between = filters[:, centres[0] : centres[-1] + 1].sum(0)
    torch.testing.assert_close(between, torch.ones_like(between))


def test_spectrograms_are_neither_mirrored_nor_moved_in_training(root):
    source = DigitClips("train", 10, 16, ("theo",), 0, root)
    plain = ClipDataset(source, 64)
    trained = ClipDataset(source, 64, training=True, augmented=False)
    for item in range(4):
        assert torch.equal(plain[item]["clip"], trained[item]["clip"])
    pictures = ClipDataset(source, 64, training=True)
    assert not all(torch.equal(plain[i]["clip"], pictures[i]["clip"]) for i in range(4))


def test_missing_and_other_recordings_are_refused(root):
    with pytest.raises(HDFError, match=r"--root: get .*expected 60 recordings of theo for 'train'"):
        DigitClips("train", 60, 16, ("theo",), 0, root).clips  # noqa: B018
    with pytest.raises(HDFError, match=r"sources: expected some of george.*found \['anna'\]"):
        DigitClips(sources=("anna",))
    with pytest.raises(HDFError, match="split: expected one of train"):
        DigitClips("dev")
    record(root / "0_theo_0.wav", np.zeros(100), rate=16000)
    with pytest.raises(HDFError, match="expected 8000 Hz, 1 channel, 16 bits, found 16000 Hz"):
        read(root / "0_theo_0.wav")
