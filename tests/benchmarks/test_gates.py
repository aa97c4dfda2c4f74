"""The gates: measures on gates made by hand, variants of the temporal one, a miniature."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.__main__ import main
from benchmarks.evidence import gates, gates_report
from benchmarks.evidence.clips import Pool
from benchmarks.evidence.controls import build_attention
from examples.train.data.clips import Clip, to_tensor
from hdf_modules import DistributionalAttention, Stage, attach, with_features

FRAMES = 8


def looked(temporal, frequency=None):
    """Measure one module with these branches, in a model that says how large its features are."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(3, 4, 1), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2))
    clip = torch.rand(2, 3, FRAMES, 6, 6)
    options = {"stages": [Stage("0", 4)], "example": clip}
    attach(
        net, FRAMES, factory=lambda *a, **o: build_attention(*a, identity_start=False), **options
    )
    (attention,) = (m for m in net.modules() if isinstance(m, DistributionalAttention))
    attention.temporal.register_forward_hook(lambda _, args, __: temporal(*args))
    if frequency:
        attention.frequency.register_forward_hook(lambda _, args, __: frequency(*args))
    model = with_features(net).eval()
    model(clip)  # the first forward finds the features, in a trial
    rng = np.random.default_rng(0)
    shown = [rng.integers(0, 255, (FRAMES, 6, 6, 3), np.uint8) for _ in range(12)]
    pool = Pool(("s",), [Clip("c", 0)] * 12, shown, ("a", "b"), (0.5, 0.5))
    asked = []

    @torch.no_grad()
    def ask(part):
        logits, _ = model(torch.stack([to_tensor(clip) for clip in part.kept]))
        asked.append(logits)
        return 100 * float(torch.sigmoid(8 * (logits[:, 0] - asked[0][:, 0])).mean())

    return gates.looked(model, ask, {"seen": pool}, FRAMES), asked


def by_index(mean, _peak):
    return torch.linspace(0, 1, FRAMES).expand(len(mean), -1).contiguous()


def by_frame(mean, _peak):
    return torch.sigmoid(9 * (mean - mean.mean(1, keepdim=True)).sum(-1))


def by_clip(mean, _peak):
    return torch.sigmoid(mean.mean((1, 2)))[:, None].expand(-1, FRAMES).contiguous()


def test_a_gate_of_the_index_alone_is_explained_by_it_and_follows_nothing():
    found, _ = looked(by_index)
    gate = found["temporal 1"]
    assert (gate["place"], gate["clip"], gate["both"]) == (100, 0, 100)
    assert gate["backwards"] == {"follows": -1, "stays": 1}
    assert gate["shifted"] == {"follows": 1, "stays": 1}  # a straight line, moved
    assert gate["loss"] == {"seen": 0}
    assert gate["deviation"] == pytest.approx(0.327, abs=0.003)


def test_a_gate_of_the_content_follows_the_clip():
    gate = looked(by_frame)[0]["temporal 1"]
    assert gate["place"] < 30
    assert gate["both"] < 40
    for change in ("backwards", "shifted"):
        assert gate[change]["follows"] > 0.95
        assert abs(gate[change]["stays"]) < 0.5
    assert gate["loss"]["seen"] != 0


def test_a_gate_of_the_clip_alone_is_explained_by_it():
    gate = looked(by_clip)[0]["temporal 1"]
    assert (gate["place"], gate["clip"]) == (0, 100)


def test_a_frequency_gate_of_the_picture_is_mirrored_with_it():
    gate = looked(by_index, lambda total: torch.sigmoid(total - total.mean()))[0]["frequency 1"]
    assert gate["mirrored"]["follows"] > 0.99
    assert abs(gate["mirrored"]["stays"]) < 0.5


def test_a_gate_that_says_one_thing_has_nothing_to_explain():
    found, _ = looked(lambda mean, _: torch.full((len(mean), FRAMES), 0.5))
    gate = found["temporal 1"]
    assert gate["place"] is gate["both"] is gate["backwards"]["follows"] is None


def test_the_mean_takes_the_place_of_every_clip_s_gate_and_goes_again():
    found, asked = looked(by_frame)
    assert set(found) == {"temporal 1", "frequency 1", "temporal all", "frequency all"}
    assert found["temporal 1"]["loss"] == found["temporal all"]["loss"]
    # clean, backwards, shifted, mirrored, then one without each gate and without all of a branch
    assert len(asked) == 8
    assert torch.equal(asked[4], asked[6])
    assert not torch.allclose(asked[0], asked[4])


def test_the_steps_inside_are_those_that_the_branch_computes():
    attention = build_attention(4, FRAMES, identity_start=False)
    model = nn.Sequential(attention)
    x = torch.rand(6, 4, FRAMES, 3, 3)
    with gates.steps(model) as found, torch.no_grad():
        model(x[:2])
        model(x[2:])
    (parts,) = found.values()
    torch.testing.assert_close(parts["A"][:, :, 0], x[:, 0].mean((2, 3)))
    torch.testing.assert_close(parts["F"], parts["I"] @ attention.temporal.mixing.weight.mT)
    assert not attention.temporal.mixing._forward_hooks


@pytest.mark.parametrize("way", ["identity", "normalised", "own"])
def test_a_way_in_changes_the_temporal_gate_alone(way):
    torch.manual_seed(0)
    x = torch.rand(2, 6, 4, 5, 5)
    released = build_attention(6, 4, identity_start=False)
    torch.manual_seed(0)
    changed = build_attention(6, 4, identity_start=False, content=[way])
    missing = changed.load_state_dict(released.state_dict(), strict=False).missing_keys
    if way == "identity":
        assert torch.equal(
            build_attention(6, 4, content=[way]).temporal.mixing.weight, torch.eye(4)
        )
    else:
        assert not torch.allclose(changed.gates(x)[0], released.gates(x)[0])
    assert torch.allclose(changed.gates(x)[1], released.gates(x)[1])
    assert missing == (["temporal.own.weight", "temporal.own.bias"] if way == "own" else [])
    changed(x).sum().backward()
    assert all(p.grad is not None for p in changed.temporal.parameters())


def test_normalised_statistics_have_no_level():
    torch.manual_seed(0)
    attention = build_attention(6, 4, content=["normalised"])
    x = torch.rand(2, 6, 4, 5, 5)
    torch.testing.assert_close(attention.gates(3 * x + 2)[0], attention.gates(x)[0])


def test_a_miniature_resumes_and_reports(tmp_path, capsys):
    common = ["--folder", str(tmp_path), "--output", str(tmp_path / "out"), "--workers", "1"]
    run = ["evidence", "gates", "miniature-faces", "--only", "released", "all", *common]
    main([*run, "--limit", "1"])
    main(run)
    assert "1 of 2 runs done, 1 to do" in capsys.readouterr().out
    text = (tmp_path / "out/evidence_gates_miniature-faces.md").read_text()
    assert "| all three | 1 |" in text
    assert text.count("| temporal 4 |") == 4  # in two tables of each
    numbers = json.loads((tmp_path / "out/evidence_gates_miniature-faces.json").read_text())
    assert set(numbers["variants"]) == {"released", "all"}
    assert gates_report.page(numbers) == text


def test_gates_without_runs_of_the_released_module_are_refused(tmp_path, capsys):
    common = ["--folder", str(tmp_path), "--output", str(tmp_path), "--limit", "0"]
    with pytest.raises(SystemExit):
        main(["evidence", "gates", "miniature-faces", *common])
    assert "gates: expected runs of released, found none" in capsys.readouterr().err
