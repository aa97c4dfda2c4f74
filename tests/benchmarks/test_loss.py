"""A miniature run of the loss's benchmark: its record, its table, and claims of any size."""

import json

import pytest

from benchmarks import loss


def test_a_miniature_run_writes_record_table_and_plots(tmp_path):
    sizes = ["--sizes", "256", "--memory-sizes", "512", "--rank-size", "256"]
    loss.main([*sizes, "--output", str(tmp_path)])
    loss.main(["positives", "--output", str(tmp_path)])
    found = json.loads((tmp_path / "loss.json").read_text())
    assert list(found) == ["contrastive", "memory", "ranks", "weights", "positives"]
    assert all(part["machine"]["versions"]["torch"] for part in found.values())

    (row,) = found["contrastive"]["rows"]
    assert row["n"] == 256
    assert all(row[name][unit] > 0 for name in loss.NAMES for unit in ("ms", "mb"))
    assert all(row["difference"] < 1e-9 for row in found["weights"]["rows"])
    shares = [row["share"] for row in found["positives"]["rows"]]
    assert len(shares) == 5, "rows of the same size are replaced"
    assert shares == sorted(shares)
    assert shares[0] < 0.8 < shares[-1]

    table = (tmp_path / "loss.md").read_text()
    assert table.count("\n| 256 |") == 1
    assert 0 < (tmp_path / "loss.png").stat().st_size < 150_000


def test_tiles_need_a_fraction_of_one_matrix_of_all_pairs():
    matrix = 4096**2 * 4e-6
    assert loss.peak("tiles", 4096, 32, "cpu") < matrix / 3


def test_rows_of_another_machine_are_dropped():
    before = {"machine": {"processor": "another"}, "rows": [{"n": 1, "mb": 2.0}]}
    assert loss.merge(before, [{"n": 2, "mb": 3.0}])["rows"] == [{"n": 2, "mb": 3.0}]


def test_an_unknown_part_is_named(capsys):
    with pytest.raises(SystemExit):
        loss.main(["speed"])
    assert "expected some of contrastive, memory, ranks, weights, positives, found speed" in (
        capsys.readouterr().err
    )
