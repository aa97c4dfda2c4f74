"""A miniature run of the loss's benchmark: its record, its table, and claims of any size."""

import json

from benchmarks.__main__ import main
from benchmarks.loss import contrastive


def test_a_miniature_run_writes_record_table_and_plots(tmp_path):
    sizes = ["--sizes", "256", "--memory-sizes", "512", "--rank-size", "256"]
    main(["loss", *sizes, "--output", str(tmp_path)])
    main(["loss", "positives", "--output", str(tmp_path)])
    found = json.loads((tmp_path / "loss_cpu.json").read_text())
    assert list(found) == ["contrastive", "memory", "ranks", "weights", "positives"]
    assert all(part["machine"]["versions"]["torch"] for part in found.values())

    (row,) = found["contrastive"]["rows"]
    assert row["n"] == 256
    assert all(row[name][unit] > 0 for name in contrastive.NAMES for unit in ("ms", "mb"))
    assert all(row["difference"] < 1e-9 for row in found["weights"]["rows"])
    shares = [row["share"] for row in found["positives"]["rows"]]
    assert len(shares) == 5, "rows of the same size are replaced"
    assert shares == sorted(shares)
    assert shares[0] < 0.8 < shares[-1]

    table = (tmp_path / "loss_cpu.md").read_text()
    assert table.count("\n| 256 |") == 1
    assert 0 < (tmp_path / "loss_cpu.png").stat().st_size < 150_000


def test_a_peer_that_is_not_installed_is_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(contrastive, "PEER", ("supcon", "a_package_that_nobody_has"))
    monkeypatch.setattr(contrastive, "own_peak", lambda *_: 1.0)
    main(["loss", "contrastive", "--sizes", "64", "128", "--output", str(tmp_path)])
    assert "supcon: left out, a_package_that_nobody_has is not" in capsys.readouterr().out
    rows = json.loads((tmp_path / "loss_cpu.json").read_text())["contrastive"]["rows"]
    assert [set(row) for row in rows] == [{"n", "dense", "tiles"}] * 2
    table = (tmp_path / "loss_cpu.md").read_text()
    assert "| N | dense, ms | tiles, ms | dense, MB | tiles, MB |" in table


def test_on_a_gpu_memory_is_measured_in_the_same_process(monkeypatch):
    monkeypatch.setattr(contrastive, "warm_peak", lambda *given: given)
    assert contrastive.own_peak("tiles", 64, 8, "cuda") == ("tiles", 64, 8, "cuda")


def test_tiles_need_a_fraction_of_one_matrix_of_all_pairs():
    matrix = 4096**2 * 4e-6
    assert contrastive.own_peak("tiles", 4096, 32, "cpu") < matrix / 3
