"""Attach attention to one model of every timm family and to video models; write what happened.

python -m tests.support.backbones                       # all of them; rewrites the table
python -m tests.support.backbones --only resnet18 volo_d1_224

Each model is built without pretrained weights, for the smallest image that it takes, attached
without any hint and put through :func:`verify.verify`. The run fails if a model neither passes nor
is refused as ``REFUSED`` says.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
import torchvision
import transformers
from torch import nn
from torchvision.models.video import mvit_v2_s, s3d

from hdf_modules import HDFError, Stage
from tests.support.verify import verify
from tests.support.video_models import MODELS as VIDEO
from tests.support.video_models import VideoModel

INTRODUCTION = """# Backbones

`make test-backbones` writes this page: one model of every module of `timm.models` (that with the
fewest parameters, and some whose features lie differently), and video models of torchvision,
pytorchvideo and transformers. `attach(model, num_frames)` was called without any hint. Attached
means that no output changed by a bit, that every attention ran once in a forward, that with r
moved off 0 every one of its parameters got a gradient, and that `detach` gave keys and outputs
back. {attached} of {all} models are attached, {refused} are refused with a reason, in {families}
families of timm {timm}; torch {torch}, torchvision {torchvision}, transformers {transformers},
pytorchvideo 0.1.5.

A number after the layout is that of tokens before the grid.

| family | model | stages | channels | layout |
| --- | --- | --- | --- | --- |
"""
TABLE = Path(__file__).parents[2] / "hdf_modules/backbones/BACKBONES.md"
FRAMES = 4

# By module of timm.models: its model with the fewest parameters, then others whose features lie
# differently. A family that is not here is looked through when the script runs.
MODELS: dict[str, tuple[str, ...]] = {
    "beit": ("beit_base_patch16_224",),
    "byoanet": ("halonet_h1",),
    "byobnet": (
        "test_byobnet",
        "mobileone_s1",
        "repvgg_a0",
    ),
    "cait": ("cait_xxs24_224",),
    "coat": (
        "coat_tiny",
        "coat_lite_tiny",
    ),
    "convit": ("convit_tiny",),
    "convmixer": ("convmixer_768_32",),
    "convnext": (
        "test_convnext",
        "convnext_atto",
        "convnextv2_atto",
    ),
    "cpubone": ("cpubone_nano",),
    "crossvit": ("crossvit_tiny_240",),
    "csatv2": ("csatv2",),
    "cspnet": ("cs3darknet_focus_s",),
    "cspnext": ("cspnext_tiny",),
    "davit": ("davit_tiny",),
    "deepseek_vit": ("deepseek_vit_412m",),
    "deit": (
        "deit_tiny_patch16_224",
        "deit_tiny_distilled_patch16_224",
    ),
    "densenet": ("densenet121",),
    "dla": ("dla46x_c",),
    "dpn": ("dpn48b",),
    "edgenext": ("edgenext_xx_small",),
    "efficientformer": ("efficientformer_l1",),
    "efficientformer_v2": ("efficientformerv2_s0",),
    "efficientnet": (
        "test_efficientnet",
        "efficientnet_b0",
        "mobilenetv2_035",
    ),
    "efficientvim": ("efficientvim_m1",),
    "efficientvit_mit": ("efficientvit_b0",),
    "efficientvit_msra": ("efficientvit_m0",),
    "eva": (
        "vit_tiny_patch16_dinov3_qkvb",
        "eva02_tiny_patch14_224",
    ),
    "fasternet": ("fasternet_t0",),
    "fastvit": ("fastvit_t8",),
    "focalnet": ("focalnet_tiny_srf",),
    "gcvit": ("gcvit_xxtiny",),
    "gemma4_vit": ("gemma4_vit_167m",),
    "ghostnet": ("ghostnet_050",),
    "hardcorenas": ("hardcorenas_b",),
    "hgnet": (
        "hgnetv2_b0",
        "hgnet_tiny",
    ),
    "hiera": ("hiera_tiny_224",),
    "hieradet_sam2": ("sam2_hiera_tiny",),
    "hrnet": ("hrnet_w18_small",),
    "iformer": ("iformer_t",),
    "inception_next": ("inception_next_atto",),
    "inception_resnet_v2": ("inception_resnet_v2",),
    "inception_v3": ("inception_v3",),
    "inception_v4": ("inception_v4",),
    "lcnetv2": ("lcnetv2_small",),
    "levit": (
        "levit_128s",
        "levit_conv_128s",
    ),
    "lowformer": ("lowformer_b0",),
    "mambaout": (
        "test_mambaout",
        "mambaout_femto",
    ),
    "maxxvit": (
        "test_coatnet",
        "maxvit_rmlp_pico_rw_256",
    ),
    "metaformer": (
        "poolformerv2_s12",
        "caformer_s18",
    ),
    "mlp_mixer": (
        "gmlp_ti16_224",
        "gmixer_12_224",
        "resmlp_12_224",
    ),
    "mobilenetv3": ("mobilenetv3_small_050",),
    "mobilenetv5": ("mobilenetv5_base",),
    "mobilevit": (
        "mobilevit_xxs",
        "mobilevitv2_050",
    ),
    "mvitv2": ("mvitv2_tiny",),
    "naflexvit": ("naflexvit_base_patch16_parfac_gap",),
    "nasnet": ("nasnetalarge",),
    "nest": ("nest_tiny",),
    "nextvit": ("nextvit_small",),
    "nfnet": (
        "test_nfnet",
        "nf_regnet_b0",
    ),
    "pit": (
        "pit_ti_224",
        "pit_ti_distilled_224",
    ),
    "pnasnet": ("pnasnet5large",),
    "pvt_v2": ("pvt_v2_b0",),
    "qwen3_vit": ("qwen3_vit_88m",),
    "rdnet": ("rdnet_tiny",),
    "regnet": (
        "regnetx_002",
        "regnety_002",
    ),
    "repghost": ("repghostnet_050",),
    "repvit": ("repvit_m1",),
    "res2net": ("res2next50",),
    "resnest": ("resnest14d",),
    "resnet": (
        "test_resnet",
        "resnet18",
        "seresnet18",
    ),
    "resnetv2": ("resnetv2_18",),
    "rexnet": ("rexnet_100",),
    "selecsls": ("selecsls42",),
    "senet": ("legacy_seresnet18",),
    "sequencer": ("sequencer2d_s",),
    "shvit": ("shvit_s1",),
    "sknet": ("skresnet18",),
    "starnet": ("starnet_s050",),
    "swiftformer": ("swiftformer_xs",),
    "swin_transformer": ("swin_tiny_patch4_window7_224",),
    "swin_transformer_v2": ("swinv2_tiny_window8_256",),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224",),
    "tiny_vit": ("tiny_vit_5m_224",),
    "tnt": ("tnt_s_legacy_patch16_224",),
    "tresnet": ("tresnet_m",),
    "twins": (
        "twins_svt_small",
        "twins_pcpvt_small",
    ),
    "vgg": (
        "vgg11",
        "vgg11_bn",
    ),
    "visformer": ("visformer_tiny",),
    "vision_transformer": (
        "test_vit",
        "vit_tiny_patch16_224",
        "vit_wee_patch16_reg1_gap_256",
    ),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224",),
    "vision_transformer_relpos": ("test_vit_relpos",),
    "vision_transformer_sam": ("samvit_base_patch16_224",),
    "vitamin": ("vitamin_small_224",),
    "volo": ("volo_d1_224",),
    "vovnet": ("ese_vovnet19b_slim_dw",),
    "xception": ("legacy_xception",),
    "xception_aligned": ("xception41p",),
    "xcit": (
        "xcit_nano_12_p8_224",
        "xcit_tiny_12_p16_224",
    ),
}

# Models of which one position of the smallest image would be left, which has neither a spread nor a
# spectrum, and one that takes multiples of 14.
AT_LEAST = {
    "csatv2": 128,
    "deepseek_vit_412m": 112,
    "efficientvim_m1": 128,
    "efficientvit_m0": 128,
    "inception_resnet_v2": 160,
    "inception_v3": 160,
    "inception_v4": 160,
    "selecsls42": 128,
    "shvit_s1": 128,
}

# What the quick tests take in a smaller size.
FULL_SIZE = {
    "mvit_v2_s": VideoModel(mvit_v2_s, 16, lambda: torch.rand(1, 3, 16, 224, 224), ()),
    "s3d at 224": VideoModel(s3d, 16, lambda: torch.rand(1, 3, 16, 224, 224), ()),
}

# Class of model: what the reason given to the user says.
REFUSED = {
    "Hiera": "order of pooling windows",
    "CrossVit": "two scales at once",
    "RDNet": "loop over their children",
}


@dataclass
class Row:
    """What happened with one model."""

    family: str
    name: str
    stages: list[Stage] = field(default_factory=list)
    refused: str = ""
    failed: str = ""


def everything() -> list[tuple[str, str]]:
    """Return family and name of all models to look at."""
    images = [(f, n) for f in timm.list_modules() for n in MODELS.get(f) or (smallest(f),)]
    return images + [("video", name) for name in (*VIDEO, *FULL_SIZE)]


def smallest(family: str) -> str:
    """Return the model of a family with the fewest parameters."""

    def parameters(name: str) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in timm.create_model(name).parameters())

    return min(timm.list_models(module=family), key=parameters)


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Build a model for the smallest square image it takes, and one clip of such images."""
    config = timm.get_pretrained_cfg(name)
    channels, own, _ = config.input_size if config else (3, 224, 224)
    for size in (*range(AT_LEAST.get(name, 64), own, 32), own):
        for options in ({"img_size": size}, {}):
            try:
                model = timm.create_model(name, num_classes=7, **options).eval()
                if options and not _remembers(model, size):
                    continue
                channels = first_channels(model, channels)
                with torch.no_grad():
                    model(torch.rand(1, channels, size, size))
            except Exception:
                continue
            return model, torch.rand(FRAMES, channels, size, size)
    raise RuntimeError(f"{name} takes no image of {own}×{own}")


def _remembers(model: nn.Module, size: int) -> bool:
    """Whether the model can tell for which size it was built, so that attach finds a sample."""
    return getattr(getattr(model, "patch_embed", None), "img_size", None) == (size, size)


def first_channels(model: nn.Module, channels: int) -> int:
    """Return the channels of the first convolution, where they are not those of colours."""
    first = dict(model.named_modules()).get(str(model.pretrained_cfg.get("first_conv")))
    mono = isinstance(first, nn.Conv2d) and first.in_channels % 3
    return first.in_channels if mono else channels


def look(family: str, name: str, device: torch.device | str = "cpu") -> Row:
    """Verify one model."""
    torch.manual_seed(0)
    row = Row(family, name)
    try:
        if family == "video":
            video = FULL_SIZE.get(name) or VIDEO[name]
            model, sample, frames = video.build(), video.sample(), video.num_frames
        else:
            (model, sample), frames = build(name), FRAMES
        row.stages = verify(model, frames, sample, device)
    except HDFError as error:
        row.refused = str(error)
        if REFUSED.get(type(model).__name__, "\n") not in row.refused:
            row.failed, row.refused = f"{row.refused}\n", ""
    except Exception:
        row.failed = traceback.format_exc(limit=-3)
    return row


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", help="names of models; the table is then not written")
    chosen = parser.parse_args().only
    warnings.simplefilter("ignore")
    rows = []
    for family, name in everything():
        if chosen and name not in chosen:
            continue
        start = time.perf_counter()
        rows.append(look(family, name))
        gc.collect()
        print(f"{time.perf_counter() - start:6.1f} s  {line(rows[-1])}", flush=True)
        print(rows[-1].failed, end="", file=sys.stderr)
    if not chosen:
        TABLE.write_text(table(rows))
    failed = [row.name for row in rows if row.failed]
    print(f"{len(rows)} models, {len(failed)} failed: {failed}")
    return 1 if failed else 0


def table(rows: list[Row]) -> str:
    """Return the page of all models."""
    head = INTRODUCTION.format(
        all=len(rows),
        attached=sum(bool(row.stages) for row in rows),
        refused=sum(bool(row.refused) for row in rows),
        families=len(timm.list_modules()),
        timm=timm.__version__,
        torch=torch.__version__.split("+")[0],
        torchvision=torchvision.__version__.split("+")[0],
        transformers=transformers.__version__,
    )
    return head + "\n".join(map(line, rows)) + "\n"


def line(row: Row) -> str:
    """Return a model's line of the table."""
    if not row.stages:
        return f"| {row.family} | {row.name} | {row.refused or 'FAILED'} | | |"
    names = ", ".join(stage.name for stage in row.stages)
    channels = ", ".join(str(stage.channels) for stage in row.stages)
    layouts = dict.fromkeys(
        f"`{s.layout.pattern}` {s.layout.prefix_tokens or ''}".strip() for s in row.stages
    )
    return f"| {row.family} | {row.name} | {names} | {channels} | {', '.join(layouts)} |"


if __name__ == "__main__":
    sys.exit(main())
