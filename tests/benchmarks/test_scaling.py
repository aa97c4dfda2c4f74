"""g and λ over a run, in miniature."""

import json

import pytest

from benchmarks.__main__ import main
from benchmarks.scaling.runs import ALPHA, SETTINGS


def test_a_miniature_scaling_run(tmp_path):
    small = ["--clips", "16", "--epochs", "2", "--size", "16", "--frames", "2", "--widths", "4"]
    main(["scaling", *small, "8", "--output", str(tmp_path)])
    found = json.loads((tmp_path / "scaling.json").read_text())["runs"]
    assert found["machine"]["versions"]["torch"]
    runs = {(run["model"], run["setting"]): run for run in found["rows"]}
    assert len(runs) == len(SETTINGS) * 2
    size, larger = (runs[name, "EMA"]["parameters"] for name in ("width 4", "width 8"))
    assert size < larger
    for run in runs.values():
        assert len(run["steps"]["gradient_norm"]) == 4
        assert all(value > 0 for series in run["steps"].values() for value in series)
    # λ follows its formula: g over the unit, smoothed or not, above the floor
    for name, unit in (("as published", 1.0), ("√P", size**0.5)):
        steps = runs["width 4", name]["steps"]
        for g, weight in zip(steps["gradient_norm"], steps["lambda_ce"], strict=True):
            share = g / unit / (g / unit + 1)
            assert weight == pytest.approx(ALPHA * max(share, 0.1), rel=1e-5)
    assert (tmp_path / "scaling.md").read_text().count("\n| ") == len(runs) + 1
    assert 0 < (tmp_path / "scaling.png").stat().st_size < 200_000
