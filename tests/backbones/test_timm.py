"""A pinned sample of timm's families; ``make test-backbones`` goes through all of them."""

import pytest
import timm
import torch

from hdf_modules import HDFError, attach
from tests.support.backbones import MODELS, REFUSED, TABLE, line, look

# Small and quick, and every way in which features can lie is among them.
SAMPLE = (
    "test_byobnet",
    "cait_xxs24_224",  # the class token comes in behind the blocks
    "convit_tiny",  # the class token comes in between them
    "test_convnext",
    "cpubone_nano",
    "edgenext_xx_small",
    "test_efficientnet",
    "efficientvim_m1",  # stages return a copy of what they pass on
    "efficientvit_m0",
    "eva02_tiny_patch14_224",  # patches do not divide the image
    "fasternet_t0",
    "ghostnet_050",
    "inception_next_atto",
    "levit_128s",
    "test_mambaout",
    "test_coatnet",
    "mobilenetv3_small_050",
    "mobilevit_xxs",
    "test_nfnet",
    "pit_ti_224",
    "regnetx_002",  # stages loop over their children
    "repghostnet_050",
    "test_resnet",
    "starnet_s050",
    "swiftformer_xs",
    "test_vit",
    "test_vit_relpos",
    "ese_vovnet19b_slim_dw",
    "xcit_nano_12_p8_224",
)
FAMILY = {name: family for family, names in MODELS.items() for name in names}


@pytest.mark.parametrize("name", SAMPLE)
def test_attached_and_verified_as_the_table_says(name, device):
    row = look(FAMILY[name], name, device)
    assert not row.failed
    assert row.stages
    assert line(row) in TABLE.read_text().splitlines()


def test_the_sample_is_wide():
    assert len({FAMILY[name] for name in SAMPLE}) >= 24


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("crossvit_tiny_240", REFUSED["CrossVit"]),
        ("hiera_tiny_224", REFUSED["Hiera"]),
        ("rdnet_tiny", REFUSED["RDNet"]),
    ],
)
def test_refused_with_its_reason(name, reason, device):
    with pytest.raises(HDFError, match=f"a model with one grid of features, found .*{reason}"):
        attach(timm.create_model(name).to(device), 4)
    assert f"| {name} |" in TABLE.read_text()


def test_the_table_has_every_family_and_no_failure():
    text = TABLE.read_text()
    families = {row.split(" | ")[0].strip("| ") for row in text.splitlines()}
    assert families >= set(MODELS)
    assert "FAILED" not in text


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "regnetx_002"])
def test_one_forward_is_enough(name, device):
    """Also where the class token alone is read and the last block is left out."""
    model, calls = timm.create_model(name).to(device), []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    attach(model, 4)
    handle.remove()
    assert len(calls) == 1


def test_no_random_number_is_drawn(device):
    model = timm.create_model("test_resnet").to(device)
    torch.manual_seed(0)
    expected = torch.rand(3, device=device)
    torch.manual_seed(0)
    attach(model, 4, factory=lambda *_, **__: torch.nn.Identity())
    assert torch.equal(torch.rand(3, device=device), expected)
