"""One call on real code bases, unmodified, in a folder that HDF_CHECKOUTS names.

git clone https://github.com/okankop/Efficient-3DCNNs $HDF_CHECKOUTS/Efficient-3DCNNs
HDF_CHECKOUTS=… python -m pytest tests/backbones/test_checkouts.py
"""

import importlib
import os
import sys
from pathlib import Path

import pytest
import torch

from hdf_modules import attach
from hdf_modules.backbones import dam_parameters, summary

CLIP = [(1, 3, 16, 112, 112)]
FRAMES = [(16, 3, 96, 96)]
CLIP_AND_SOUND = [(1, 3, 16, 160, 160), (1, 1, 256, 128)]
FRAMES_AND_TEXTS = [(16, 3, 224, 224), None]
TEXT = {
    "context_length": 77,
    "vocab_size": 100,
    "transformer_width": 64,
    "transformer_heads": 1,
    "transformer_layers": 2,
}
SMALL = {"num_classes": 7, "img_size": 96, "embed_dim": 192, "num_heads": 3, "depth": 8}
HICMAE = "avit_dim256_patch16_160_a256"
TRANSFORMER = {"vision_layers": 12, "vision_width": 768, "vision_patch_size": 32}
RESNET = {"vision_layers": (3, 4, 6, 3), "vision_width": 64, "vision_patch_size": None}

# Checkout, module, what to call there, its arguments; shapes of an example; how many places.
CASES = [
    ("3D-ResNets-PyTorch", "models.resnet", "generate_model", (18,), {}, CLIP, 4),
    ("3D-ResNets-PyTorch", "models.resnet2p1d", "generate_model", (18,), {}, CLIP, 4),
    ("3D-ResNets-PyTorch", "models.densenet", "generate_model", (121,), {}, CLIP, 3),
    ("Efficient-3DCNNs", "models.mobilenet", "get_model", (), {}, CLIP, 4),
    ("Efficient-3DCNNs", "models.mobilenetv2", "get_model", (), {}, CLIP, 4),
    ("Efficient-3DCNNs", "models.shufflenet", "get_model", (), {"groups": 3}, CLIP, 4),
    ("Efficient-3DCNNs", "models.shufflenetv2", "get_model", (), {}, CLIP, 4),
    (
        "Efficient-3DCNNs",
        "models.squeezenet",
        "get_model",
        (),
        {"sample_size": 112, "sample_duration": 16},
        CLIP,
        4,
    ),
    (
        "Efficient-3DCNNs",
        "models.c3d",
        "get_model",
        (),
        {"sample_size": 112, "sample_duration": 16},
        CLIP,
        4,
    ),
    ("pytorch-video-recognition", "network.R3D_model", "R3DClassifier", (7, [2] * 4), {}, CLIP, 4),
    (
        "pytorch-video-recognition",
        "network.R2Plus1D_model",
        "R2Plus1DClassifier",
        (7, [2] * 4),
        {},
        CLIP,
        4,
    ),
    ("pytorch-video-recognition", "network.C3D_model", "C3D", (7,), {}, CLIP, 4),
    ("MAE-pytorch", "modeling_finetune", "VisionTransformer", (), SMALL, FRAMES, 4),
    ("HiCMAE", "modeling_finetune_av", HICMAE, (), {"num_classes": 7}, CLIP_AND_SOUND, 4),
    ("CLIP/clip", "model", "CLIP", (512, 224), TEXT | TRANSFORMER, FRAMES_AND_TEXTS, 4),
    ("CLIP/clip", "model", "CLIP", (1024, 224), TEXT | RESNET, FRAMES_AND_TEXTS, 4),
]


@pytest.fixture
def imported(monkeypatch):
    """Import a module of a checkout, and forget it afterwards."""
    known = set(sys.modules)

    def load(checkout, name):
        folder = Path(os.environ.get("HDF_CHECKOUTS", "")) / checkout
        if "HDF_CHECKOUTS" not in os.environ or not folder.is_dir():
            pytest.skip(f"HDF_CHECKOUTS names no folder with {checkout}")
        monkeypatch.syspath_prepend(str(folder))
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield load
    for name in set(sys.modules) - known:
        if name.partition(".")[0] in ("models", "network", "model", "modeling_finetune"):
            del sys.modules[name]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("checkout", "module", "name", "args", "options", "shapes", "count"), CASES
)
def test_one_call(imported, checkout, module, name, args, options, shapes, count, device):
    torch.manual_seed(0)
    model = getattr(imported(checkout, module), name)(*args, **options).eval().to(device)
    texts = torch.arange(5 * 77, device=device).view(5, 77) % 100
    inputs = [texts if shape is None else torch.rand(shape, device=device) for shape in shapes]
    with torch.no_grad():
        before = model(*inputs)
    attach(model, 16, example=inputs)
    assert len(summary(model).splitlines()) == count + 2
    after = model(*inputs)
    pairs = zip(before, after, strict=True) if isinstance(before, tuple) else [(before, after)]
    assert all(torch.equal(x, y) for x, y in pairs)
    (after[0] if isinstance(after, tuple) else after).sum().backward()
    assert all(p.grad is not None for p in dam_parameters(model))
