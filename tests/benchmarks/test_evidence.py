"""The evidence: corruptions, records, statistics, a miniature end to end."""

import hashlib
import json
import wave
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.evidence import clips, figures, records, report, search, summary, training
from benchmarks.evidence.clips import Pool
from benchmarks.evidence.command import plan
from benchmarks.evidence.controls import FrameGain, SqueezeExcitation, build_attention
from benchmarks.evidence.corruptions import CORRUPTIONS, SEVERITIES
from benchmarks.evidence.measures import cosines, degradation, measures
from benchmarks.evidence.records import Job
from benchmarks.evidence.sets import DATA
from benchmarks.evidence.settings import FACES, PRESETS, ROWS, SEARCH, Setting
from examples.train.data.expressions import CLASSES, DFEW_MIX
from examples.train.metrics import Predictions
from hdf_modules import DistributionalAttention

MINIATURE = PRESETS["miniature"]
DRAWN = DATA["drawn"]


def some_clip(frames=16, size=40):
    rng = np.random.default_rng(0)
    smooth = np.linspace(40, 215, size)[:, None, None] + np.zeros((size, size, 3))
    return np.stack(
        [np.roll(smooth, 2 * t, 0) + rng.normal(0, 3, smooth.shape) for t in range(frames)]
    ).astype(np.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_keeps_the_shape_and_grows_with_severity(name):
    clip = some_clip()
    before = clip.copy()
    change = []
    for severity in SEVERITIES:
        out = CORRUPTIONS[name](clip, severity, np.random.default_rng(1))
        assert out.shape == clip.shape
        assert out.dtype == np.uint8
        change.append(np.abs(out.astype(float) - clip).mean())
    assert change[0] > 0.3
    assert change[-1] > change[0]
    np.testing.assert_array_equal(clip, before)


def test_there_are_ten_corruptions_at_five_severities():
    assert len(clips.variants()) == 50


@pytest.mark.parametrize("name", ["frame drops", "frame shuffles", "speed"])
def test_temporal_corruptions_only_choose_frames(name):
    clip = np.broadcast_to(np.arange(16, dtype=np.uint8)[:, None, None, None], (16, 8, 8, 3))
    for severity in SEVERITIES:
        shown = CORRUPTIONS[name](clip, severity, np.random.default_rng(0))[:, 0, 0, 0]
        assert set(shown) <= set(range(16))
        if name == "frame shuffles":
            assert sorted(shown) == list(range(16))
        else:
            assert (np.diff(shown.astype(int)) >= 0).all()


def predictions(said, true, groups):
    logits = torch.nn.functional.one_hot(torch.tensor(said), len(CLASSES)).float()
    return Predictions(torch.tensor(true), torch.tensor(groups), logits, logits)


def test_measures_by_hand():
    true = [*range(7), *range(7)]
    said = [0] * 7 + [*range(7)]  # source "a" knows one class, source "b" all
    cohorts = [("young",), *[("old",)] * 13]
    pool = Pool(("a", "b"), [], [], CLASSES, DRAWN.mix, cohorts)
    found = measures(predictions(said, true, [0] * 7 + [1] * 7), pool)
    assert found["sources"] == {"a": pytest.approx(14.29), "b": 100}
    assert found["recall"]["happy"] == 100
    assert found["recall"]["disgust"] == 50
    assert found["uar"] == pytest.approx(100 * (1 + 6 * 0.5) / 7, abs=0.01)
    happy = DFEW_MIX[0] / sum(DFEW_MIX)
    assert found["war"] == pytest.approx(100 * (happy + (1 - happy) / 2), abs=0.01)
    # the old: the first class once right, the six others once of two times
    assert found["cohorts"] == {"old": pytest.approx(100 * 4 / 7, abs=0.01), "young": 100}


def test_degradation_is_the_mean_loss_over_the_fifty():
    found = degradation(lambda name, severity: 90.0 - 2 * severity - 5 * (name == "blur"))
    assert found["clean"] == 90
    assert found["uar"]["blur"] == [83, 81, 79, 77, 75]
    assert found["loss"] == pytest.approx(6 + 0.5)


def record(seed, seen, unseen):
    test = {"uar": seen, "war": seen, "recall": {"a": seen}, "sources": {"x": seen}}
    held = {"uar": unseen, "war": unseen, "recall": {"a": unseen}, "sources": {"y": unseen}}
    corruption = {"mean": seen, "loss": 1.0, "uar": {}}
    tests = {"seen": test, "unseen": held, "corruption": corruption}
    return summary.measured({"seed": seed, "held_out": f"s{seed}", "fit": 100, "test": tests})


def test_differences_are_paired_by_seed_and_source():
    base = [record(seed, 50 + 10 * seed, 30 + 10 * seed) for seed in range(4)]
    better = [record(seed, 51 + 10 * seed, 34 + 10 * seed) for seed in (3, 1, 0, 2)]
    gap = summary.difference(better, base, "unseen UAR")
    assert gap == (4, 4, 4, 4)
    assert summary.difference(better[:2], base, "seen UAR").runs == 2
    assert summary.difference([record(9, 0, 0)], base, "seen UAR").runs == 0


@pytest.mark.parametrize("runs", [4, 5])
def test_a_picture_has_an_interval_where_the_table_has_one(runs):
    base = [record(seed, 50, 30) for seed in range(5)]
    figure = figures.differences({"ce": base, "dam": base[:runs]}, FACES)
    lines = [line for line in figure.axes[0].lines if line.get_linewidth() == 2]
    assert len(lines) == (runs == 5)


def tried(seed, seen, unseen):
    return {"seed": seed, "validation": {"seen": {"uar": seen}, "unseen": {"uar": unseen}}}


def test_candidates_are_ranked_by_their_paired_gain():
    found = {
        "CE": [tried(0, 50, 40), tried(1, 60, 60), tried(2, 70, 80)],
        "worse": [tried(2, 69, 79)],
        "better": [tried(0, 51, 43), tried(1, 60, 62)],
    }
    assert list(search.ranked(found)) == ["better", "CE", "worse"]
    assert search.ranked(found)["better"] == (2, 55.5, 52.5, 0.5, 2.5)
    assert search.ranked(found)["better"].gain == 1.5


def test_the_interval_is_that_of_a_bootstrap():
    base = [record(seed, 50, 30) for seed in range(40)]
    gains = np.random.default_rng(0).normal(3, 2, 40)
    mine = [record(seed, 50, 30 + gain) for seed, gain in enumerate(gains)]
    gap = summary.difference(mine, base, "unseen UAR")
    half = 1.96 * gains.std() / np.sqrt(40)
    assert gap.mean == pytest.approx(gains.mean())
    assert gap.low == pytest.approx(gains.mean() - half, abs=0.1)
    assert gap.high == pytest.approx(gains.mean() + half, abs=0.1)


def test_another_configuration_is_another_record(tmp_path):
    job = Job("row", Setting("Row"), MINIATURE, "studio", 0)
    records.save(tmp_path, job, {"value": 1})
    others = [
        replace(job, seed=1),
        replace(job, held_out="film"),
        replace(job, setting=Setting("Row", rho=0.1)),
        replace(job, preset=replace(MINIATURE, epochs=9)),
    ]
    assert len({j.key for j in (job, *others)}) == 5
    assert replace(job, setting=Setting("Renamed")).key == job.key
    assert replace(job, preset=replace(MINIATURE, seeds=9, main_seeds=9)).key == job.key
    found = records.load(tmp_path, [*others, job])
    assert [r["value"] for r in found["row"]] == [1]
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


@pytest.mark.parametrize(
    ("preset", "digest"), [("cpu", "df08b5b113ead974"), ("gpu", "847c607c054ce39d")]
)
def test_records_of_before_stay_found(preset, digest):
    """Keys are made of names and settings, so neither may change, nor their order."""
    budget = PRESETS[preset]
    jobs = plan(ROWS, budget) + plan(SEARCH, replace(budget, seeds=budget.main_seeds))
    assert jobs[0].key.startswith("ce--studio--0--")
    text = "\n".join(job.key for job in jobs)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


def test_a_setting_is_like_another_but_for_what_it_says():
    whole, without = ROWS["hdf"], ROWS["dsm-sam"]
    assert without == replace(whole, label="HDF without DAM", attention=None)
    assert ROWS["hdf-gradient"].loss == whole.loss | {"floor": 0.5}


def test_a_level_of_two_numbers_moves_over_the_first_half_of_the_steps():
    weighting = training.build_loss(FACES["cvar-ramp"], steps=8).weighting
    assert [weighting.level(advance=True) for _ in range(6)] == [1.0, 0.875, 0.75, 0.625, 0.5, 0.5]


def test_a_report_says_what_its_runs_differ_in():
    machines = [{"torch": "2.6", "sources": "a"}, {"torch": "2.7", "sources": "a"}]
    assert report.mixed(machines) == ["**Mixed**: runs of different torch are compared.", ""]
    assert report.mixed(machines[:1]) == []


def test_the_control_has_the_size_of_the_attention():
    for channels in (16, 24, 48, 96):
        attention = DistributionalAttention(channels, 16)
        control = SqueezeExcitation(channels, 16)
        sizes = [sum(p.numel() for p in m.parameters()) for m in (attention, control)]
        assert abs(sizes[0] - sizes[1]) <= channels + 1
    x = torch.rand(2, 96, 4, 3, 3) + 0.5
    assert torch.equal(control(x), x)
    torch.nn.init.normal_(control.excite.bias)
    gate = control(x) / x
    assert gate.amin() > 0
    assert 1 < gate.amax() < 2


@pytest.mark.parametrize("only", ["temporal", "frequency"])
@pytest.mark.parametrize("fused", [True, False])
def test_one_branch_holds_the_other_still(only, fused):
    torch.manual_seed(0)
    attention = build_attention(6, 4, only=only, identity_start=False)
    attention.fused = fused
    x = torch.rand(2, 6, 4, 8, 8) + 0.5
    optimizer = torch.optim.AdamW(attention.parameters(), 0.1)
    attention(x).square().mean().backward()
    optimizer.step()
    for gate in (attention.gate(x), (attention(x) / x)[:, 0]):
        along_time, along_space = gate.std(1).max(), gate.flatten(2).std(2).max()
        assert (along_time > 1e-4) == (only == "temporal")
        assert (along_space > 1e-4) == (only == "frequency")


def test_a_miniature_runs_resumes_and_reports(tmp_path, capsys):
    common = ["--folder", str(tmp_path), "--output", str(tmp_path / "out"), "--workers", "1"]
    run = ["evidence", "run", "miniature", "--only", "ce", "hdf", *common]
    main([*run, "--limit", "3"])
    main(run)
    out = capsys.readouterr().out
    assert "0 of 6 runs done, 3 to do" in out
    assert "3 of 6 runs done, 3 to do" in out
    main(["evidence", "report", "miniature", *common])
    table = (tmp_path / "out/evidence_miniature.md").read_text()
    assert "| CE | 2 |" in table  # of the runs that every row has
    assert "Paired differences of 3 runs" in table
    assert "webcam" in table
    assert {path.suffix for path in (tmp_path / "out").glob("*.*")} == {
        ".json",
        ".md",
        ".png",
    }
    numbers = json.loads((tmp_path / "out/evidence_miniature.json").read_text())
    assert set(numbers["rows"]) == set(numbers["main"]) == {"ce", "hdf"}
    assert [len(numbers[part]["hdf"]["runs"]) for part in ("rows", "main")] == [2, 3]
    assert len(numbers["environments"]) == 1
    assert numbers["rows"]["ce"]["metrics"]["seen UAR"]["difference"]["mean"] == 0
    files = sorted((tmp_path / "out/evidence_miniature").glob("ce--studio*"))
    test = json.loads(files[0].read_text())["test"]
    assert set(test["seen"]["sources"]) == set(DRAWN.names) - {"studio"}
    assert set(test["unseen"]["sources"]) == {"studio"}
    assert {len(uars) for uars in test["corruption"]["uar"].values()} == {5}


def test_the_main_rows_have_more_runs_and_leave_every_source_out_equally_often():
    jobs = plan(ROWS, PRESETS["cpu"])
    for name in ROWS:
        left_out = [job.held_out for job in jobs if job.name == name]
        if name in ("ce", "hdf"):
            assert sorted(left_out) == sorted(2 * DRAWN.names)
        else:
            assert left_out == list(DRAWN.names[:5])


def test_a_run_is_a_function_of_its_configuration(tmp_path):
    results = [
        training.run(ROWS["ce"], MINIATURE, "film", 3, tmp_path, test=False) for _ in range(2)
    ]
    for result in results:
        del result["training_seconds"]
    assert results[0] == results[1]
    assert "test" not in results[0]


def test_every_row_of_a_seed_begins_with_the_same_weights():
    clip = torch.randn(2, 3, 4, 16, 16)
    networks = {}
    for row in ("ce", "se", "dam-identity", "dam", "hdf"):
        torch.manual_seed(0)
        networks[row] = training.build(ROWS[row], MINIATURE, 7).eval()
    baseline = networks["ce"].state_dict()
    for row, network in networks.items():
        state = network.state_dict()
        assert all(torch.equal(state[name], value) for name, value in baseline.items())
        unchanged = torch.equal(network(clip)[0], networks["ce"](clip)[0])
        assert unchanged == (row in {"ce", "se", "dam-identity"})


def test_one_gain_a_frame_does_not_look_at_the_clip():
    control = FrameGain(6, 4)
    x = torch.rand(2, 6, 4, 3, 3) + 0.5
    assert torch.equal(control(x), x)
    torch.nn.init.normal_(control.gain)
    gain = (control(x) / x)[:, :, :, 0, 0]
    torch.testing.assert_close(gain, gain[:1, :1].expand(2, 6, 4))
    assert gain[0, 0].std() > 0.1


def test_faces_have_rows_of_their_own_and_another_seed_other_people(tmp_path):
    budget = PRESETS["faces"]
    jobs = plan(budget.rows, budget)
    left_out = [job.held_out for job in jobs if job.name == "dam"]
    assert left_out == [*DATA["faces"].names, DATA["faces"].names[0]]  # five seeds, in turn
    small = PRESETS["miniature-faces"]
    names = [
        {clip.name for clip in clips.pool(small, tmp_path, "train", ["grey"], seed).clips}
        for seed in (0, 0, 1)
    ]
    assert names[0] == names[1]
    assert len(names[0] & names[2]) < 5


def test_a_miniature_of_real_faces_measures_people_and_the_plateau(tmp_path, capsys, device):
    common = ["--folder", str(tmp_path), "--output", str(tmp_path / "out"), "--workers", "1"]
    common += ["--device", device.type]
    main(["evidence", "run", "miniature-faces", "--only", "ce", "frame-gain", *common])
    assert "2 to do" in capsys.readouterr().out
    main(["evidence", "report", "miniature-faces", *common])
    table = (tmp_path / "out/evidence_miniature-faces.md").read_text()
    assert "Worst people" in table
    assert "Epochs to 50%" in table
    files = sorted((tmp_path / "out/evidence_miniature-faces").glob("ce--plain*"))
    test = json.loads(files[0].read_text())["test"]
    assert {"female", "male", "white", "not white"} >= set(test["unseen"]["cohorts"]) != set()
    with pytest.raises(SystemExit):
        main(["evidence", "search", "miniature-faces", *common])
    assert "drawn faces" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["evidence", "run", "miniature-faces", *common, "--device", "nowhere"])
    assert "--device: leave it out; expected a device" in capsys.readouterr().err


def test_a_miniature_of_digits_measures_speakers_and_no_corruption(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in (f"{d}_{s}_{n}" for s in DATA["digits"].names for d in range(10) for n in range(4)):
        with wave.open(str(tmp_path / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(rng.integers(-9999, 9999, 1600, np.int16).tobytes())
    common = ["--folder", str(tmp_path), "--output", str(tmp_path / "out"), "--workers", "1"]
    run = ["evidence", "run", "miniature-digits", "--only", "ce", "group", *common]
    with pytest.raises(SystemExit):
        main(run)
    assert "--root: expected a folder of recordings" in capsys.readouterr().err
    main([*run, "--root", str(tmp_path)])
    main(["evidence", "report", "miniature-digits", *common])
    table = (tmp_path / "out/evidence_miniature-digits.md").read_text()
    assert "orruption" not in table
    assert "| Row | george | Worst |" in table
    assert str(tmp_path) not in (tmp_path / "out/evidence_miniature-digits.json").read_text()
    assert not (tmp_path / "out/evidence_miniature-digits_corruptions.png").exists()
    (file,) = (tmp_path / "out/evidence_miniature-digits").glob("group*")
    record = json.loads(file.read_text())
    assert set(record["test"]["seen"]["sources"]) == set(DATA["digits"].names) - {"george"}
    assert str(tmp_path) not in file.read_text()


def test_a_folder_of_data_is_no_part_of_the_configuration(tmp_path):
    job = Job("row", Setting("Row"), PRESETS["digits"], "theo", 0)
    assert replace(job, preset=replace(PRESETS["digits"], root=tmp_path)).key == job.key


def test_the_worst_source_left_out_is_that_of_the_least_mean():
    def run(seed, held_out, uar):
        return {"seed": seed, "held_out": held_out, "unseen UAR": uar}

    runs = {"ce": [run(0, "a", 60.0), run(1, "b", 50.0), run(2, "a", 30.0)]}
    lines = report._by_source(runs, {"ce": Setting("CE")})
    assert "| CE | 45.0 | 50.0 | 45.0 |" in lines


def test_the_plateau_is_counted_in_epochs():
    def epochs(*wars):
        return summary._take_off({"history": [{"war": war} for war in wars]})

    assert epochs(20, 30, 51, 40) == 3
    assert epochs(20, 30) == 3  # never: one more than there were


def test_cosines_by_hand():
    found = predictions([0, 0, 1], [0, 0, 1], [0, 0, 0])
    found.features = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 3.0]])
    assert cosines(found) == {"same": 0.707, "other": pytest.approx(0.707 / 2, abs=1e-3)}


def test_validation_styles_are_neither_trained_nor_tested_on():
    assert not set(DRAWN.validation_names) & set(DRAWN.names)


def test_rows_and_candidates_have_labels_of_their_own():
    own = (PRESETS[name].rows for name in ("cpu-weights", "faces-48"))
    for settings in (ROWS, FACES, *own, SEARCH):
        assert len({setting.label for setting in settings.values()}) == len(settings)
