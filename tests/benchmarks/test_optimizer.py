"""Miniature runs of the optimizer's benchmarks: records, tables, plots."""

import json

import pytest
import torch

from benchmarks import optimizer, scaling


def test_a_miniature_run_writes_record_table_and_plot(tmp_path):
    for rounds in ("1", "2"):
        optimizer.main(["--models", "small", "--rounds", rounds, "--output", str(tmp_path)])
    found = json.loads((tmp_path / "optimizer.json").read_text())
    assert found["machine"]["versions"]["torch"]
    (row,) = found["rows"]
    assert row["rounds"] == 2
    assert all(row["ms"][method] > 0 for method in optimizer.METHODS)
    assert row["ratios"]["sam/plain"] > 1
    assert (tmp_path / "optimizer.md").read_text().count("\n| small |") == 1
    assert 0 < (tmp_path / "optimizer.png").stat().st_size < 150_000


def test_both_sams_do_the_same_work():
    ends = {}
    for method in ("plain", "peer", "sam"):
        model, x, y = optimizer.setting("small", "cpu")
        model.dropout.p = 0.0  # the peer draws new masks for its second pass
        step = optimizer.stepper(method, model, x, y)
        for _ in range(2):
            step()
        ends[method] = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (ends["sam"] - ends["peer"]).norm() < 0.02 * (ends["sam"] - ends["plain"]).norm()


def test_a_miniature_scaling_run(tmp_path):
    small = ["--clips", "16", "--epochs", "2", "--size", "16", "--frames", "2", "--widths", "4"]
    scaling.main([*small, "8", "--output", str(tmp_path)])
    found = json.loads((tmp_path / "scaling.json").read_text())
    runs = {(run["model"], run["setting"]): run for run in found["runs"]}
    assert len(runs) == len(scaling.SETTINGS) * 2
    first, last = found["models"]
    assert first["parameters"] < last["parameters"]
    for run in runs.values():
        assert len(run["steps"]["gradient_norm"]) == 4
        assert all(value > 0 for series in run["steps"].values() for value in series)
    # λ follows its formula: g over the unit, smoothed or not, above the floor
    for name, unit in (("as published", 1.0), ("√P", first["parameters"] ** 0.5)):
        steps = runs[first["name"], name]["steps"]
        for g, weight in zip(steps["gradient_norm"], steps["lambda_ce"], strict=True):
            share = g / unit / (g / unit + 1)
            assert weight == pytest.approx(scaling.ALPHA * max(share, 0.1), rel=1e-5)
    assert (tmp_path / "scaling.md").read_text().count("\n| ") == len(runs) + 1
    assert 0 < (tmp_path / "scaling.png").stat().st_size < 200_000
