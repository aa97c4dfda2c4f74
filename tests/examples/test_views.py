"""Looking at videos and comparing runs: the pages and pictures show what is there."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from examples.train import visualize
from examples.train.compare import differing_options, load_runs, paired
from examples.train.compare import main as compare
from examples.train.models import add_attention, build
from examples.train.report.gates import catch_gates, dct_energy, watch
from examples.train.run import main as train
from hdf_modules import HDFError, with_features
from tests.support.clips import write_folder, write_video
from tests.support.runs import SMALL


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    train(["--output", str(root / "plain"), *SMALL, "--attention", "none"])
    train(["--output", str(root / "full"), *SMALL])
    return root


def watched(frames, span=4, windows=5, num_frames=4):
    torch.manual_seed(0)
    model = with_features(add_attention(build("small", 3), num_frames)).eval()
    return model, watch(model, frames, num_frames, span, windows)


class TestWatch:
    frames = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8)

    def test_windows_cover_the_video_and_gates_are_those_of_the_model(self):
        model, seen = watched(self.frames)
        assert seen.centres.tolist() == [0, 2, 4, 6, 8]
        assert seen.probabilities.shape == (5, 3)
        np.testing.assert_allclose(seen.probabilities.sum(1), 1, rtol=1e-5)
        assert seen.temporal.shape == (4, 9)
        assert [maps.shape for maps in seen.frequency] == [(5, s, s) for s in (8, 4, 2, 1)]
        assert [maps.shape for maps in seen.energy] == [(5, 7, 7)] * 4
        # the first forward of a model may begin with a trial: gates of one call only
        assert len(catch_gates(model, torch.zeros(1, 3, 4, 16, 16))[1]) == 4

    def test_windows_repeat_the_edge_frames(self):
        _, seen = watched(self.frames)
        edge = np.concatenate([self.frames[:1].repeat(2, 0), self.frames[:2]])
        _, alone = watched(edge, windows=3)
        middle = alone.centres.tolist().index(2)
        np.testing.assert_allclose(seen.probabilities[0], alone.probabilities[middle], rtol=1e-5)

    def test_a_still_video_has_no_change_in_its_temporal_gate(self):
        still = np.repeat(self.frames[:1], 9, 0)
        assert np.abs(watched(still)[1].temporal).max() < 1e-6
        assert np.abs(watched(self.frames)[1].temporal).max() > 1e-6

    def test_energy_of_a_constant_is_in_the_lowest_frequency(self):
        model = with_features(add_attention(build("small", 3), 4))
        attention = next(m for m in model.modules() if hasattr(m, "gates"))
        energy = dct_energy(attention, torch.ones(1, attention.channels, 4, 33, 33))[0]
        assert energy.argmax() == 0
        assert energy[0, 0] == energy.max()
        assert energy[3, 3] < 0.01 * energy[0, 0]


def test_a_video_becomes_a_still_and_an_animation(tmp_path, runs):
    video = write_video(tmp_path / "v.mp4", 12, size=(64, 48))
    arguments = ["--checkpoint", str(runs / "full/best.pt"), "--windows", "3"]
    arguments += ["--region", "8", "0", "56", "48", "--output", str(tmp_path / "out")]
    picture, animation = visualize.main([str(video), *arguments])
    with Image.open(picture) as drawn, Image.open(animation) as moving:
        assert drawn.width == 1100
        assert moving.n_frames == 3
    assert max(picture.stat().st_size, animation.stat().st_size) < 3e6


def test_folders_and_drawn_clips_are_videos_too(tmp_path):
    write_folder(tmp_path / "clip", 5)
    for video in (str(tmp_path / "clip"), "drawn:1"):
        visualize.main([video, "--windows", "2", "--output", str(tmp_path / "out")])
        with Image.open(tmp_path / "out/gates.gif") as moving:
            assert moving.n_frames == 2


def test_a_run_without_attention_has_nothing_to_show(runs):
    with pytest.raises(HDFError, match=r"a run with attention, found .*plain/best\.pt"):
        visualize.main(["drawn:1", "--checkpoint", str(runs / "plain/best.pt")])


def test_weights_of_another_model_are_named(runs, tmp_path):
    state = torch.load(runs / "full/best.pt")
    state["model"]["model.head.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(HDFError, match=r"weights of this model, found .*other\.pt: .*head\.bias"):
        visualize.main(["drawn:1", "--checkpoint", str(tmp_path / "other.pt")])


def test_runs_are_compared_on_one_page(runs, tmp_path):
    page = compare([str(runs / "plain"), str(runs / "full"), "--output", str(tmp_path / "c.html")])
    text = page.read_text()
    assert text.count("<img") == 2
    assert "http" not in text.replace("http://www.w3.org", "")
    for word in ("plain", "full", "disgust", "webcam", "attention"):
        assert word in text
    found = load_runs([runs / "plain", runs / "full"])
    assert differing_options(found) == {"attention": ["none", "DistributionalAttention()"]}
    for run in found.values():
        assert f"{run['test']['uar']:.1f}" in text


def test_differences_are_paired():
    labels = [0] * 30 + [1] * 10
    base = {"labels": labels, "predicted": [0] * 40, "war": 75.0, "uar": 50.0}
    other = {"labels": labels, "predicted": labels, "war": 100.0, "uar": 100.0}
    found = paired(base, other)
    assert (found["war"], found["uar"]) == (25, 50)
    assert (found["only_other"], found["only_base"]) == (10, 0)
    # every clip of class 1 is gained and none of class 0, so UAR's gain does not vary
    assert found["uar_interval"] == [50, 50]
    low, high = found["war_interval"]
    assert 10 < low < 25 < high < 40
    same = paired(base, base)
    assert same["war_interval"] == same["uar_interval"] == [0, 0]


def test_runs_that_cannot_be_compared_are_named(runs, tmp_path):
    with pytest.raises(HDFError, match="at least two runs, found 1"):
        load_runs([runs / "full"])
    with pytest.raises(HDFError, match=r"finished runs, found no file .*none/run\.json"):
        load_runs([runs / "full", tmp_path / "none"])
    with pytest.raises(HDFError, match="different folders"):
        load_runs([runs / "full", runs / "full"])
    record = json.loads((runs / "full/run.json").read_text())
    record["test"]["labels"][0] = (record["test"]["labels"][0] + 1) % 7
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(HDFError, match=r"the test clips of .*full, found others in"):
        load_runs([runs / "full", tmp_path])
