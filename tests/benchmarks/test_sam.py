"""What SAM costs, in miniature: its record, its table, its peer."""

import json

import torch

from benchmarks.__main__ import main
from benchmarks.sam import steps


def test_a_miniature_run_writes_record_table_and_plot(tmp_path):
    for rounds in ("1", "2"):
        main(["sam", "--models", "small", "--rounds", rounds, "--output", str(tmp_path)])
    found = json.loads((tmp_path / "sam_cpu.json").read_text())["steps"]
    assert found["machine"]["versions"]["torch"]
    (row,) = found["rows"]
    assert row["rounds"] == 2
    assert all(row["ms"][method] > 0 for method in steps.METHODS)
    assert row["ratios"]["sam/plain"] > 1
    assert (tmp_path / "sam_cpu.md").read_text().count("\n| small |") == 1
    assert 0 < (tmp_path / "sam_cpu.png").stat().st_size < 150_000


def test_a_peer_that_is_not_installed_is_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(steps, "PEER", ("peer", "a_package_that_nobody_has"))
    main(["sam", "steps", "--models", "small", "--rounds", "2", "--output", str(tmp_path)])
    assert "peer: left out, a_package_that_nobody_has is not" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "sam_cpu.json").read_text())["steps"]["rows"]
    assert set(row["ms"]) == {"plain", "twice", "sam"}
    assert (
        "| plain, ms | twice, ms | sam, ms | twice / plain | sam / plain |"
        in (tmp_path / "sam_cpu.md").read_text()
    )


def test_both_sams_do_the_same_work():
    ends = {}
    for method in ("plain", "peer", "sam"):
        model, x, y = steps.setting("small", "cpu")
        model.dropout.p = 0.0  # the peer draws new masks for its second pass
        step = steps.stepper(method, model, x, y)
        for _ in range(2):
            step()
        ends[method] = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (ends["sam"] - ends["peer"]).norm() < 0.02 * (ends["sam"] - ends["plain"]).norm()
