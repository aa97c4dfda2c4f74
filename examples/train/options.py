"""The command line of a training."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from examples.train.models import NAMES
from hdf_modules import HDFError

DATA = ("synthetic", "list", "ferv39k", "dfew", "mafw", "cremad")
# What may change between a run and its continuation without changing the result.
FREE = ("output", "resume", "device", "workers", "cache", "stop_after")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line.

    Raises:
        HDFError: for values that argparse cannot judge.
    """
    options = _parser().parse_args(arguments)
    for name in ("epochs", "batch_size", "frames"):
        if getattr(options, name) < 1:
            raise HDFError(f"--{name.replace('_', '-')}", "at least 1", getattr(options, name))
    if options.data != "synthetic" and options.root is None:
        raise HDFError("--root", f"the folder of --data {options.data}", "none")
    if options.data == "list" and not (options.train_list and options.test_list):
        raise HDFError("--train-list, --test-list", "both, for --data list", "not both")
    if not 0 < options.val_fraction < 1:
        raise HDFError("--val-fraction", "a share in (0, 1)", options.val_fraction)
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.train",
        description="Train a video network with distributional attention (DAM), the "
        "heterogeneity-aware loss (DSM) and SAM, and write an HTML report. Without --data it draws "
        "its own face clips. Under torchrun it trains on all processes. @FILE reads options from a "
        "file, as recipes/hdf_x3d.args; those after it win.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        fromfile_prefix_chars="@",
    )
    parser.convert_arg_line_to_args = partial(shlex.split, comments=True)  # type: ignore[method-assign]
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of checkpoints and report"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in --output, bit for bit"
    )
    for add in (_data, _model, _loss, _training):
        add(parser)
    return parser


def _data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    add = group.add_argument
    add("--data", choices=DATA, default="synthetic", help="drawn faces, or the layout of real data")
    add("--root", type=Path, help="folder of the real data")
    add("--train-list", type=Path, help="with --data list: '<path> <frames> <label>' per line")
    add("--test-list", type=Path, help="with --data list: the same for testing")
    add("--classes", nargs="+", help="with --data list: class names in label order")
    add(
        "--fold",
        type=int,
        nargs="+",
        default=[1],
        help="with --data dfew, mafw or cremad: test fold, 1 to 5; several: mean ± std of all",
    )
    add(
        "--val-fraction", type=float, default=0.1, help="share of the training clips for validation"
    )
    add("--skip-missing", action="store_true", help="leave out annotated clips that are not there")
    add(
        "--skip-broken",
        action="store_true",
        help="decode all first, leave out what does not decode",
    )
    add("--clips", type=int, default=1200, help="synthetic: training clips")
    add(
        "--sources",
        nargs="+",
        default=["studio", "film", "webcam", "phone"],
        help="synthetic: styles",
    )
    add("--test-sources", nargs="+", help="synthetic: styles of the test clips, if others")
    add("--size", type=int, default=40, help="side of the frames in pixels")
    add("--frames", type=int, default=16, help="frames per clip")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes that draw or decode")
    add("--cache", action="store_true", help="keep decoded clips in memory")


def _model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    add, switch = group.add_argument, argparse.BooleanOptionalAction
    add("--model", default="small", help=f"one of {', '.join(NAMES)}")
    add("--pretrained", action="store_true", help="start from published weights")
    add("--attention", action=switch, default=True, help="DAM behind every stage")
    add(
        "--consistency",
        choices=("time", "bins"),
        default="time",
        help="DAM: axis of the differences",
    )
    add(
        "--perturbation",
        choices=("learned", "adversarial", "none"),
        default="learned",
        help="DAM: the frequency branch's noise",
    )


def _loss(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("loss")
    add, switch = group.add_argument, argparse.BooleanOptionalAction
    add("--contrastive", action=switch, default=True, help="DSM's terms on the features")
    add("--alpha", type=float, default=10.0, help="weight of the classification loss")
    add("--beta", type=float, default=0.1, help="weight of the contrastive terms")
    add("--temperature", type=float, default=0.05, help="of the contrastive loss")
    add(
        "--eta",
        type=float,
        default=0.2,
        help="centre and width of its robust weights, on the cosine",
    )
    add("--bottleneck", type=float, default=0.1, help="weight of the covariance trace")
    add("--memory", type=int, default=0, help="clips of earlier batches among the positives")
    add(
        "--across-groups",
        action=switch,
        default=False,
        help="positives from other sources, scenes or actors alone",
    )
    add("--rescale", action=switch, default=True, help="set the balance from the gradient norm")
    add(
        "--weighting",
        choices=("none", "kl", "kl-ball", "chi2", "cvar", "group"),
        default="none",
        help="distributionally robust weights of the clips",
    )
    add("--level", type=float, help="temperature, radius, level or step size of --weighting")
    add("--label-smoothing", type=float, default=0.0, help="of the cross-entropy")


def _training(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    add, switch = group.add_argument, argparse.BooleanOptionalAction
    add("--sam", action=switch, default=True, help="sharpness-aware minimisation")
    add("--rho", type=float, default=0.05, help="radius of SAM")
    add("--epochs", type=int, default=7, help="passes over the training clips")
    add("--batch-size", type=int, default=16, help="clips per step and process")
    add("--lr", type=float, default=3e-3, help="peak learning rate of AdamW, then a cosine")
    add("--weight-decay", type=float, default=0.05, help="of AdamW")
    add("--clip-grad", type=float, default=float("inf"), help="largest gradient norm")
    add("--amp", action="store_true", help="mixed precision")
    add("--device", help="cpu, cuda, …; a GPU if there is one")
    add("--seed", type=int, default=0, help="of everything random")
    add("--stop-after", type=int, help="stop after this epoch, to be resumed")


def program(main: Callable[[], object]) -> None:
    """Run a command line; what is wrong with its words is one line, not a traceback."""
    try:
        main()
    except HDFError as error:
        sys.exit(f"error: {error}")
