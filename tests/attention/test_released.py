"""A released checkpoint, alone or as parts of a larger one, is converted by one command."""

import os

import numpy as np
import pytest
import torch

from hdf_modules import DistributionalAttention, HDFError
from hdf_modules.attention.released import convert, main, options_of
from tests.support.attention import GOLDEN


def released(path, device):
    golden = np.load(path)
    return {k[6:]: torch.tensor(golden[k], device=device) for k in golden if k.startswith("state.")}


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_file_is_converted(path, tmp_path, device, capsys):
    state = released(path, device)
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "released.pt")
    main([str(tmp_path / "released.pt"), str(tmp_path / "converted.pt")])
    converted = torch.load(tmp_path / "converted.pt", weights_only=True)
    expected = DistributionalAttention.from_released(state, 8).state_dict()
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name].cpu()) for name in expected)
    # what is printed builds the module
    said = capsys.readouterr().out
    call = said.removeprefix("the module: ").replace("channels", "8")
    made = eval(call, {"DistributionalAttention": DistributionalAttention})
    made.to(next(iter(state.values())).dtype).load_state_dict(converted)


def test_all_of_a_model_are_converted_and_the_rest_is_kept(device):
    state = released(GOLDEN[0], device)
    whole = {
        f"{stage}.dam.{name}": v for stage in ("layer1", "layer2") for name, v in state.items()
    }
    whole["layer1.conv.weight"] = torch.ones(2, device=device)
    converted, options = convert(whole)
    assert list(options) == ["layer1.dam.", "layer2.dam."]
    assert options["layer1.dam."] == options_of(state)
    module = DistributionalAttention.from_released(state, 8)
    expected = {f"{p}{name}" for p in options for name in module.state_dict()}
    assert converted.keys() == expected | {"layer1.conv.weight"}


def test_a_file_without_one_is_named(tmp_path, device):
    with pytest.raises(
        HDFError, match=r"give the state .*temporal_robust\.gamma, found 1 other keys"
    ):
        convert({"weight": torch.ones(1, device=device)})
    with pytest.raises(SystemExit, match=r"error: .*none"):
        main([str(tmp_path / "none.pt"), str(tmp_path / "converted.pt")])


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path, device, monkeypatch):
    torch.save(released(GOLDEN[0], device), tmp_path / "released.pt")
    (tmp_path / "converted.pt").write_text("before")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SystemExit, match="No space left"):
        main([str(tmp_path / "released.pt"), str(tmp_path / "converted.pt")])
    assert (tmp_path / "converted.pt").read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"released.pt", "converted.pt"}
