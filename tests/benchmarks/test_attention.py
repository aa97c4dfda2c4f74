"""What attention costs, in miniature: its record, its report, its peers."""

import json
import os
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.attention import backbones, modules
from benchmarks.attention.literal import LiteralAttention
from benchmarks.attention.peers import FACTORIES
from benchmarks.measure import (
    captured,
    copies,
    interleaved,
    ratio,
    saved_bytes,
    spread,
    without_kernels,
)
from hdf_modules import DistributionalAttention
from hdf_modules.attention import Layout

QUICK = ["--eager", "--rounds", "2", "--spread", "inf", "--threads", "1"]


def test_literal_is_our_module_with_the_released_choices():
    ours = DistributionalAttention(
        6, 5, layout="b t c h w", consistency="bins", identity_start=False
    )
    literal = LiteralAttention(6, 5)
    literal.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 6, 9, 7)
    torch.testing.assert_close(literal(x), ours(x))


@pytest.mark.parametrize("shape", [(2, 96, 16, 14, 14), (2, 96, 16, 7, 7), (2, 24, 16, 28, 28)])
def test_memory_kept_for_backward(shape):
    x, module = torch.randn(shape), modules.attention(shape[1], shape[2], "cpu")
    assert saved_bytes(module, x) == x.nbytes
    assert saved_bytes(LiteralAttention(shape[1]), x.transpose(1, 2)) > 4 * x.nbytes


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("layout", ["b c t h w", "(b t) c h w", "(b t) (h w) c"])
def test_peers_keep_the_layout_and_the_tokens_beside_the_grid(name, layout):
    tokens = "(h w)" in layout
    shape = {"b c t h w": (1, 16, 16, 4, 4), "(b t) c h w": (16, 16, 4, 4)}.get(
        layout, (16, 17, 16)
    )
    module = FACTORIES[name](16, 16, layout=Layout(layout, prefix_tokens=int(tokens)))
    x = torch.randn(shape)
    y = module(x)
    assert y.shape == x.shape
    if tokens:
        assert torch.equal(y[:, 0], x[:, 0])


def test_timing_is_interleaved_and_refuses_unstable_runs():
    order = []
    cases = {name: lambda number, n=name: order.append((n, number)) for name in "ab"}
    times = interleaved(cases, "cpu", rounds=2, limit=float("inf"))
    assert [len(values) for values in times.values()] == [6, 6]
    assert order[6:14] == [(name, number) for name in "ab" for number in range(4)]
    with pytest.raises(RuntimeError, match="no stable run"):
        interleaved(cases, "cpu", rounds=2, limit=-1)
    assert ratio({"a": [2, 8, 6], "b": [1, 2, 2]}, "a", "b") == 3
    assert spread([1, 1, 1, 1]) == 0
    assert sum(x.nbytes for x in copies(torch.ones(2**20))) > 2**26


def test_every_input_has_a_graph_of_its_own(monkeypatch):
    """With one alone, its input would come from a cache."""

    class Graph:
        def replay(self):
            replayed.append(graphs.index(self))

    graphs, replayed, called = [], [], []
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: nullcontext(graphs.append(graph)))
    replay = captured(called.append, 2)
    assert called == [0, 1, 2, 0, 1]  # three of them ahead
    for number in range(5):
        replay(number)
    assert replayed == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("before", [None, "gpu"])
def test_kernels_are_turned_off_for_a_while(before, monkeypatch):
    monkeypatch.delenv("HDF_KERNELS", raising=False)
    if before:
        monkeypatch.setenv("HDF_KERNELS", before)
    with without_kernels():
        assert os.environ["HDF_KERNELS"] == "reference"
    assert os.environ.get("HDF_KERNELS") == before


def test_modules_and_report(tmp_path, monkeypatch):
    monkeypatch.setattr(modules, "SHAPES", ((1, 6, 16, 5, 5), (1, 6, 16, 3, 5)))
    monkeypatch.setattr(modules, "copies", lambda x: [x, x.clone()])
    for _ in range(2):  # the second takes the place of the first
        main(["attention", "modules", *QUICK, "--output", str(tmp_path)])
    record = json.loads((tmp_path / "attention_cpu.json").read_text())["modules"]
    assert [row["shape"][3] for row in record["rows"]] == [5, 3]
    row = record["rows"][0]
    assert record["machine"]["threads"] == 1
    assert set(row["speed"]) == {"eager forward", "eager forward+backward"}
    table = (tmp_path / "attention_cpu.md").read_text()
    assert "| 1×6×16×5×5 |" in table
    assert f"{row['ms']['literal forward']:.1f}" in table
    (tmp_path / "attention_cpu.md").unlink()
    main(["attention", "report", "--output", str(tmp_path)])
    assert (tmp_path / "attention_cpu.md").read_text() == table
    assert (tmp_path / "attention_cpu_modules.png").stat().st_size < 150_000


def test_a_backbone(tmp_path, monkeypatch):
    monkeypatch.setattr(backbones, "SIDE", 32)
    for variants in (("bare", "SE"), ("bare", "ours")):  # what is not measured again is kept
        options = ["--backbones", "resnet18", "--variants", *variants, "--no-training"]
        main(["attention", "backbones", *options, *QUICK, "--output", str(tmp_path)])
    rows = json.loads((tmp_path / "attention_cpu.json").read_text())["backbones"]["rows"]
    bare, _, ours = rows
    assert [row["variant"] for row in rows] == ["bare", "SE", "ours"]
    assert bare["inference"]["ratio"] == 1
    assert 0 < ours["parameters"] - bare["parameters"] < 20_000
    assert ours["gflops"] > bare["gflops"]
    assert ours["saved_mb"] > bare["saved_mb"]
    assert "### resnet18" in (tmp_path / "attention_cpu.md").read_text()


def test_what_is_not_installed_is_left_out_and_half_precision_is_measured(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(backbones, "SIDE", 32)
    monkeypatch.setitem(backbones.PACKAGES, "X3D-S", "a_package_that_nobody_has")
    options = ["--backbones", "X3D-S", "resnet18", "--variants", "bare", "ours"]
    options += ["--precisions", "bfloat16", "--no-training", "--output", str(tmp_path)]
    main(["attention", "backbones", *options, *QUICK])
    assert "X3D-S: left out, a_package_that_nobody_has is not installed" in capsys.readouterr().out
    rows = json.loads((tmp_path / "attention_cpu.json").read_text())["backbones"]["rows"]
    names = [(row["backbone"], row["precision"], row["variant"]) for row in rows]
    assert names == [("resnet18", "bfloat16", name) for name in ("bare", "ours")]
    assert "### resnet18, 1 clip(s), bfloat16" in (tmp_path / "attention_cpu.md").read_text()


def test_what_fills_the_memory_is_timed_apart():
    groups = backbones._groups(["bare", "ours", "non-local", "SE"])
    assert groups == [["bare", "ours", "SE"], ["bare", "non-local"]]
