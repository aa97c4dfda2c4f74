"""The training script: every option trains, results are written, bad input is named."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from torch import nn

from examples.train import draw_faces
from examples.train.build import build as build_trainer
from examples.train.data.clips import ClipDataset, augment
from examples.train.data.splits import Splits, stratified
from examples.train.data.synthetic import SyntheticClips
from examples.train.engine import Trainer
from examples.train.metrics import Predictions, by_group, calibration, scores
from examples.train.models import add_attention, build
from examples.train.options import command, parse, program
from examples.train.progress import Progress
from examples.train.run import best_epoch, fit, main
from hdf_modules import (
    SAM,
    DistributionalAttention,
    HDFError,
    HeterogeneityAwareLoss,
    with_features,
)
from hdf_modules.loss import KL, Ramp
from tests.support.runs import SMALL

ROOT = Path(__file__).parents[2]
FILM = ROOT.parent / "shared/clips/WolfgangLanger_Pexels.mp4"
FIXED = ["--balance", "Fixed(10, 0.1)"]
ACROSS = "RobustContrastive(memory=16, across_groups=True)"


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--attention", "none", "--contrastive", "none", "--bottleneck", "0", "--rho", "0", *FIXED],
        [
            "--weighting",
            "CVaR(0.5)",
            "--attention",
            "DistributionalAttention(consistency='bins', perturbation=None)",
        ],
        ["--contrastive", ACROSS, *FIXED],
    ],
    ids=["full", "plain", "cvar", "across groups"],
)
def test_a_run_writes_its_results(tmp_path, more):
    main(["--output", str(tmp_path), *SMALL, *more])
    run = json.loads((tmp_path / "run.json").read_text())
    assert len(run["steps"]) == 3
    assert set(run["steps"][0]) >= {"classification", "lambda_ce", "gradient_norm"}
    assert len(run["test"]["labels"]) == 8
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img") >= 5
    assert "http" not in page.replace("http://www.w3.org", "")
    assert (tmp_path / "best.pt").exists()


def test_training_learns(tmp_path):
    """Two classes that differ in the mouth, one source: a few seconds must be enough."""
    clips = SyntheticClips("train", 96, 24, ("studio",), mix=(1, 0, 0, 0, 1, 0, 0))
    held_out = SyntheticClips("test", 40, 24, ("studio",), mix=(1, 0, 0, 0, 1, 0, 0))
    train = ClipDataset(clips, 4, training=True, cache=clips.render())
    val, test = (ClipDataset(held_out, 4, cache=held_out.render()) for _ in range(2))
    options = parse(["--output", str(tmp_path), *SMALL, "--epochs", "8", "--frames", "4"])
    splits = Splits(train, val, test)
    trainer = build_trainer(options, splits, torch.device("cpu"))
    history = fit(options, splits, trainer, Progress(quiet=True))
    # guessing gets 30 of 40 right less than once in a thousand times
    assert history["epochs"][-1]["val"]["war"] > 75


@pytest.mark.skipif(not FILM.exists(), reason="the film is not in the repository")
def test_a_real_film_is_decoded_trained_on_and_predicted(tmp_path):
    # Blocks of a second, every third for testing: no frame is in both, and both hold all the poses
    # that either mood goes through. In each frame the square where her head moves is cut out.
    rows = {"train": [], "test": []}
    for first, blocks, mood in ((0, 8, 0), (245, 9, 1)):
        for block in range(blocks):
            for start in range(first + 24 * block, first + 24 * block + 9, 4):
                row = f"{FILM.name}#{start}-{start + 15}@280,0,640,360 16 {mood}\n"
                rows["test" if block % 3 == 1 else "train"].append(row)
    for name, lines in rows.items():
        (tmp_path / f"{name}.txt").write_text("".join(lines))
    arguments = f"""--output {tmp_path} --data list --root {FILM.parent} --classes sad happy
        --lists {tmp_path}/train.txt {tmp_path}/test.txt --size 40 --frames 8
        --batch-size 8 --epochs 20 --cache --val-fraction 0.25 --device cpu --workers 1"""
    main(arguments.split())
    test = json.loads((tmp_path / "run.json").read_text())["test"]
    assert len(test["labels"]) == len(rows["test"])
    assert test["uar"] >= 90


def test_help_says_what_everything_is(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    for word in (
        "--resume",
        "--amp",
        "--rho",
        "@FILE",
        "--weighting",
        "--attention",
        "default:",
        "torchrun",
    ):
        assert word in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs: expected an integer >= 1, found 0"),
        (["--stop-after", "-1"], "--stop-after: expected an integer >= 1, found -1"),
        (["--seed", "-1"], "--seed: expected an integer >= 0, found -1"),
        (["--workers", "-1"], "--workers: expected an integer >= 0, found -1"),
        (["--size", "0"], "--size: expected an integer >= 8, found 0"),
        (["--lr", "nan"], "--lr: expected a finite number >= 0, found nan"),
        (["--weight-decay", "-1"], "--weight-decay: expected a finite number >= 0, found -1"),
        (["--clip-grad", "-1"], "--clip-grad: expected a number > 0, found -1"),
        (["--label-smoothing", "2"], r"--label-smoothing: expected a share in \[0, 1\], found 2"),
        (["--device", "cubic"], "--device: leave it out; expected a device .*, found cubic: "),
        (["--device", "cuda:99"], "--device: leave it out; expected a device .*, found cuda:99: "),
        (["--data", "dfew"], r"--root: pass \-\-root .*expected the folder of --data dfew"),
        (
            ["--data", "list", "--root", "x"],
            r"--lists: pass \-\-lists .*expected a list to train and one to test",
        ),
        (["--val-fraction", "1"], r"--val-fraction: expected a share in \(0, 1\), found 1"),
        (["--classes", "a", "b", "a"], "--classes: expected a name of its own .*, found a b a"),
        (["--attention", "on"], r"--attention: expected none or Distr.*\(…\), found on"),
        (
            ["--attention", "DAM()"],
            r"--attention: write it .*expected none, a name, or calls of .*, found DAM",
        ),
        (["--attention", "DistributionalAttention(heads=8)"], "--attention: .*argument 'heads'"),
        (["--attention", "DistributionalAttention(bins=x)"], "--attention: .*malformed"),
        (["--model", "vgg"], "model: expected one of small, .*found 'vgg'"),
        (["--sources", "zoo"], "sources: expected some of"),
        (["--sources", "film", "--contrastive", ACROSS], "--contrastive: .* one group, 'film'"),
    ],
)
def test_bad_options_are_named(tmp_path, arguments, message):
    with pytest.raises(HDFError, match=message):
        main(["--output", str(tmp_path), *SMALL, *arguments])


@pytest.mark.parametrize("content", [b"--lr '0.1\n", b"--lr 0.1 # \xb8\xdf\n"])
def test_a_file_of_options_that_does_not_read_is_named(tmp_path, content):
    (tmp_path / "my.args").write_bytes(content)
    with pytest.raises(HDFError, match="@FILE: expected options in UTF-8, quoted as for a shell"):
        main(["--output", str(tmp_path), f"@{tmp_path / 'my.args'}"])


def test_an_error_is_one_line_on_the_terminal(tmp_path):
    with pytest.raises(SystemExit, match=r"^error: --root: [^\n]*$"):
        program(lambda: main(["--output", str(tmp_path), "--data", "dfew"]))


class TestDataset:
    def test_an_item_depends_on_seed_epoch_and_index_alone(self):
        clips = SyntheticClips("train", 3, 16)
        one, other = (ClipDataset(clips, 4, training=True, seed=5) for _ in range(2))
        other[0], other[1]
        assert torch.equal(one[2]["clip"], other[2]["clip"])
        first = one[2]["clip"]
        one.epoch = 1
        assert not torch.equal(one[2]["clip"], first)

    def test_evaluation_is_the_same_every_time_and_cached_or_not(self):
        clips = SyntheticClips("test", 2, 16)
        drawn, kept = ClipDataset(clips, 4), ClipDataset(clips, 4, cache=clips.render())
        assert drawn[1]["clip"].shape == (3, 4, 16, 16)
        assert torch.equal(drawn[1]["clip"], kept[1]["clip"])
        assert drawn[1]["clip"].mean().abs() < 1e-5

    def test_augmentation_treats_all_frames_alike(self):
        frames = np.repeat(
            np.random.default_rng(0).integers(0, 256, (1, 20, 20, 3), np.uint8), 3, 0
        )
        out = augment(frames, np.random.default_rng(1))
        assert out.shape == frames.shape
        assert (out == out[:1]).all()
        assert (out != frames).any()

    def test_every_class_is_held_out_and_kept(self):
        clips = SyntheticClips("train", 200, 16).clips
        held_out = stratified(clips, 0.1, seed=0)
        assert held_out == stratified(clips, 0.1, seed=0)
        for part in (held_out, set(range(200)) - set(held_out)):
            assert {clips[i].label for i in part} == set(range(7))
        assert abs(len(held_out) - 20) <= 4


class TestMetrics:
    def test_they_are_scikit_learns(self):
        generator = torch.Generator().manual_seed(0)
        true = torch.randint(0, 5, (60,), generator=generator)
        said = torch.where(torch.rand(60, generator=generator) < 0.6, true, 6 - true)
        found = scores(said, true, 7)
        assert found["war"] == pytest.approx(100 * accuracy_score(true, said), abs=1e-4)
        with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
            expected = balanced_accuracy_score(true, said)
        assert found["uar"] == pytest.approx(100 * expected, abs=1e-4)

    def test_groups_are_scored_apart(self):
        logits = torch.eye(2)[torch.tensor([0, 1, 0, 0])]
        labels, groups = torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 2, 2])
        table = by_group(Predictions(labels, groups, logits, logits), ("a", "b", "c"), 2)
        assert table == {
            "a": {"war": 100.0, "uar": 100.0, "clips": 2},
            "c": {"war": 0.0, "uar": 0.0, "clips": 2},
        }

    def test_the_best_epoch_on_validation_is_chosen(self):
        found = ((10, 0.1), (50, 0.9), (50, 0.5), (50, 0.5), (20, 0.2))
        epochs = [{"val": {"uar": uar, "loss": loss}} for uar, loss in found]
        assert best_epoch({"epochs": epochs}) == 2


@pytest.mark.parametrize(("name", "size"), [("small", 16), ("r3d_18", 32), ("timm/resnet10t", 32)])
def test_models_give_logits_and_take_attention(name, size):
    model = build(name, 5, 4).eval()
    clips = torch.randn(2, 3, 4, size, size)
    before = model(clips)
    add_attention(model, 4)
    assert before.shape == (2, 5)
    assert torch.equal(model(clips), before)
    assert sum(isinstance(module, DistributionalAttention) for module in model.modules()) == 4


def test_the_picture_of_the_faces_is_what_the_script_draws():
    drawn = draw_faces.picture()
    kept = Image.open(ROOT / "examples/assets/faces.png").convert("RGB")
    assert kept.size == drawn.size
    # the file has a palette of 255 colours
    assert np.abs(np.asarray(kept).astype(int) - np.asarray(drawn)).mean() < 4


@pytest.mark.parametrize("balance", ["gradient-norm", "fixed"])
def test_the_loss_counts_a_batch_once(balance):
    """SAM sees every batch twice; ramps and group weights must move once."""
    model = with_features(nn.Linear(3, 2))
    criterion = HeterogeneityAwareLoss(weighting=KL(Ramp(1.0, 2.0, steps=10)), balance=balance)
    sam = SAM(torch.optim.SGD(model.parameters(), 0.1), model=model)
    scheduler = torch.optim.lr_scheduler.ConstantLR(sam)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    cpu = torch.device("cpu")
    trainer = Trainer(model, criterion, sam, scheduler, scaler, cpu)
    batch = {"clip": torch.rand(4, 3), "label": torch.tensor([0, 1, 0, 1])}
    trainer.step(batch | {"group": torch.zeros(4, dtype=torch.long)})
    taken = [v for name, v in criterion.state_dict().items() if name.endswith("steps_taken")]
    assert taken == [1]


def test_the_command_of_a_report_gives_its_options():
    words = "--output a/b --data list --root x --lists 'a b.txt' c.txt --classes sad happy --fold 2"
    options = parse(shlex.split(f"{words} --amp --clip-grad 1.5 --skip missing --rho 0"))
    [fold] = options.fold
    recorded = vars(options) | {"fold": fold, "output": "a/b", "root": "x", "resume": True}
    typed = command(recorded)
    assert "--lr" not in typed  # as by default
    assert parse(shlex.split(typed)[3:]) == options


def test_calibration_is_the_distance_of_confidence_from_accuracy():
    said = torch.tensor([0.95, 0.55, 0.58, 1.0])
    logits = torch.stack([said, 1 - said], 1).clamp(min=1e-9).log()
    labels = torch.tensor([0, 0, 1, 0])
    table, error = calibration(Predictions(labels, labels, logits, logits))
    assert [(right, clips) for _, right, clips in table] == [(0.5, 2), (1.0, 2)]
    assert [sure for sure, _, _ in table] == pytest.approx([0.565, 0.975])
    assert error == pytest.approx(100 * (0.065 + 0.025) / 2, abs=1e-4)
