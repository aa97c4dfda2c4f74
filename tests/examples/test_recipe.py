"""The paper's recipe, end to end on miniatures in the official layouts."""

import argparse
import json
import statistics
from pathlib import Path

import pytest
import torch
from PIL import Image

from examples.train import models
from examples.train.build import build
from examples.train.data.mafw import CLASSES as MAFW
from examples.train.data.splits import open_splits
from examples.train.engine import Trainer
from examples.train.options import parse
from examples.train.run import main
from hdf_modules import DistributionalAttention, HDFError
from hdf_modules.backbones.hooks import ties

RECIPE = f"@{Path(models.__file__).parent}/recipes/hdf_x3d.args"
SMALL = ["--size", "32", "--frames", "4", "--epochs", "1", "--batch-size", "7"]
SMALL += ["--workers", "0", "--device", "cpu"]


def write_frames(folder: Path, label: int) -> None:
    folder.mkdir(parents=True)
    for i in range(5):
        Image.new("RGB", (36, 32), (30 * label, 20 * i, 90)).save(folder / f"{i:03d}.jpg")


def dfew(root: Path) -> Path:
    """Two folds of 14 training and 7 test clips, labels from 1, names of five digits."""
    for clip in range(21):
        write_frames(root / f"Clip/clip_224x224/{clip + 1:05d}", clip % 7)
    for fold, start in ((1, 14), (2, 7)):
        tested = range(start, start + 7)
        parts = {"test": tested, "train": [clip for clip in range(21) if clip not in tested]}
        for split, clips in parts.items():
            file = root / f"EmoLabel_DataSplit/{split}(single-labeled)/set_{fold}.csv"
            file.parent.mkdir(parents=True, exist_ok=True)
            rows = [f"{clip + 1:05d},{clip % 7 + 1}\n" for clip in clips]
            file.write_text("video_name,label\n" + "".join(rows))
    return root


def ferv39k(root: Path) -> Path:
    setup = root / "4_setups/All_scenes"
    setup.mkdir(parents=True)
    names = ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear")
    for split, copies in (("train", 2), ("test", 1)):
        rows = []
        for label, name in enumerate(names):
            for copy in range(copies):
                clip = f"{('Crime', 'Daily')[label % 2]}/{name}/{split}{copy}"
                write_frames(root / "2_ClipsforFaceCrop" / clip, label)
                rows.append(f"{clip} {name}\n")
        (setup / f"{split}_All.csv").write_text("".join(rows))
    return root


def mafw(root: Path) -> Path:
    folder = root / "single/no_caption/set_1"
    folder.mkdir(parents=True)
    for split, first, count in (("train", 0, 22), ("test", 22, 11)):
        rows = []
        for clip in range(first, first + count):
            write_frames(root / f"data/frames/{clip:05d}", clip % 11)
            rows.append(f"{clip:05d}.mp4 {MAFW[clip % 11]}\r\n")
        (folder / f"{split}.txt").write_bytes("".join(rows).encode())
    return root


def test_folds_are_run_and_summed_up(tmp_path, capsys):
    arguments = [RECIPE, "--data", "dfew", "--root", str(dfew(tmp_path / "data"))]
    arguments += ["--output", str(tmp_path / "runs"), "--fold", "1", "2", *SMALL]
    found = main(arguments)
    runs = [json.loads((tmp_path / f"runs/fold{i}/run.json").read_text()) for i in (1, 2)]
    for fold, run in enumerate(runs, start=1):
        assert run["options"]["model"] == "x3d_s"
        assert run["options"]["fold"] == fold
        assert {"contrastive", "lambda_ce", "gradient_norm"} <= run["steps"][0].keys()
        assert len(run["test"]["labels"]) == 7
    uar = [run["test"]["uar"] for run in runs]
    assert [scores["uar"] for scores in found] == uar
    record = json.loads((tmp_path / "runs/folds.json").read_text())
    assert record["folds"] == {"1": found[0], "2": found[1]}
    mean, std = record["mean"]["uar"], record["std"]["uar"]
    assert (mean, std) == (statistics.fmean(uar), statistics.stdev(uar))
    assert f"UAR {mean:.2f} ± {std:.2f}" in capsys.readouterr().out
    # started again, nothing is trained again, and other options are refused
    assert main(arguments) == found
    assert "epoch 1/1" not in capsys.readouterr().out
    with pytest.raises(HDFError, match=r"the run began with, found lr=0\.5"):
        main([*arguments, "--lr", "0.5"])


@pytest.mark.parametrize(("data", "make"), [("ferv39k", ferv39k), ("mafw", mafw)])
def test_the_other_datasets(tmp_path, data, make):
    arguments = [RECIPE, "--data", data, "--root", str(make(tmp_path / "data"))]
    main([*arguments, "--output", str(tmp_path / "run"), *SMALL])
    test = json.loads((tmp_path / "run/run.json").read_text())["test"]
    assert len(test["labels"]) == len(test["classes"])
    assert set(test["groups"]) == ({"Crime", "Daily"} if data == "ferv39k" else {"all"})


def recipe(*more: str) -> tuple[argparse.Namespace, Trainer]:
    options = parse(
        [RECIPE, "--data", "synthetic", "--output", "-", "--clips", "12", "--workers", "1", *more]
    )
    return options, build(options, open_splits(options), torch.device("cpu"))


def test_attention_follows_every_stage():
    """Figure 2 of the paper: X3D with attention behind its four stages; the time axis stays."""
    model, shapes = recipe("--size", "16")[1].model, []
    for tie in ties(model):
        tie.dam.register_forward_hook(lambda dam, args, x: shapes.append(tuple(x.shape[1:])))
    logits, features = model.eval()(torch.rand(1, 3, 16, 112, 112))
    assert [tie.stage.name for tie in ties(model)] == [f"blocks.{i}" for i in range(1, 5)]
    # the first forward looked for the classifier too
    assert shapes[-4:] == [(24, 16, 28, 28), (48, 16, 14, 14), (96, 16, 7, 7), (192, 16, 4, 4)]
    assert (logits.shape, features.shape) == ((1, 7), (1, 2048))


def test_a_step_of_its_training():
    _, trainer = recipe("--size", "16", "--frames", "4")
    assert trainer.optimizer.param_groups[0]["rho"] == 0.05
    before = [p.detach().clone() for p in trainer.model.parameters()]
    clips, labels = torch.rand(4, 3, 4, 32, 32), torch.tensor([0, 0, 1, 2])
    trainer.step({"clip": clips, "label": labels, "group": torch.zeros(4, dtype=torch.long)})
    g = trainer.optimizer.grad_norm
    assert trainer.criterion.terms["lambda_ce"] == pytest.approx(10 * g / (g + 1), rel=1e-5)
    after = trainer.model.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_x3d_takes_any_clip_and_keeps_its_time_axis():
    model = models.build("x3d_s", 5).eval()
    before = [model(torch.ones(1, 3, 4, side, side)) for side in (32, 48)]
    assert [out.shape for out in before] == [(1, 5), (1, 5)]
    assert not torch.allclose(before[0].sum(), torch.tensor(1.0))
    models.add_attention(model, 16)
    attached = [m for m in model.modules() if isinstance(m, DistributionalAttention)]
    assert [(m.channels, m.num_frames) for m in attached] == [(c, 16) for c in (24, 48, 96, 192)]


def test_published_weights_fill_all_but_the_classifier():
    model, other = models.build("x3d_s", 5), models.build("x3d_s", 400)
    own = model.blocks[5].proj.weight.clone()
    models._load(model, {"model_state": other.state_dict()})
    assert torch.equal(model.blocks[5].proj.weight, own)
    published = other.state_dict()
    differing = [k for k, v in model.state_dict().items() if not torch.equal(v, published[k])]
    assert differing == ["blocks.5.proj.weight", "blocks.5.proj.bias"]
