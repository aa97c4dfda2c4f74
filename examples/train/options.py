"""The command line of a training."""

from __future__ import annotations

import argparse
import io
import os
import shlex
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from examples.train.models import NAMES
from hdf_modules import HDFError
from hdf_modules.errors import at_least, number, share

DATA = ("faces", "synthetic", "list", "ferv39k", "dfew", "mafw", "cremad")
# Where a run lives; its data may move.
_PLACE = ("output", "root", "lists", "device", "workers", "cache")
# How often a run was begun, not what it is.
_TIMES = ("resume", "overwrite", "stop_after")
# What may change between a run and its continuation without changing the result.
FREE = (*_PLACE, *_TIMES)
# The least that counts may be.
_LEAST = {"seed": 0, "workers": 0, "size": 8}
_LEAST |= dict.fromkeys(("epochs", "stop_after", "batch_size", "frames", "clips"), 1)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line.

    Raises:
        HDFError: for values that argparse cannot judge.
    """
    try:
        options = _parser().parse_args(arguments)
    except ValueError as error:  # of a quote that does not end, of bytes that are no text
        raise HDFError("@FILE", "options in UTF-8, quoted as for a shell", error) from error
    _check_numbers(options)
    if options.data not in ("faces", "synthetic") and options.root is None:
        raise HDFError(
            "--root", f"the folder of --data {options.data}", "none", "pass --root FOLDER"
        )
    if options.data == "list" and not options.lists:
        raise HDFError(
            "--lists",
            "a list to train and one to test on, for --data list",
            "none",
            "pass --lists TRAIN TEST",
        )
    names = options.classes or ()
    if len(set(names)) < len(names):
        raise HDFError("--classes", "a name of its own for each class", " ".join(names))
    if not 0 < options.val_fraction < 1:
        raise HDFError("--val-fraction", "a share in (0, 1)", options.val_fraction)
    return options


def _check_numbers(options: argparse.Namespace) -> None:
    for name, least in _LEAST.items():
        value = getattr(options, name)
        at_least(f"--{name.replace('_', '-')}", value, least, or_none=value is None)
    for name in ("lr", "weight_decay", "rho"):
        number(f"--{name.replace('_', '-')}", getattr(options, name), zero=True)
    share("--label-smoothing", options.label_smoothing, one=True)
    if not options.clip_grad > 0:  # inf is the default, and clips nothing
        raise HDFError("--clip-grad", "a number > 0", options.clip_grad)


def command(options: dict[str, Any]) -> str:
    """The command line of a run with these options; what is as by default is left out."""
    defaults = vars(_parser().parse_args(["--output", ""]))
    words = ["python", "-m", "examples.train"]
    for name, value in options.items():
        usual = [value] == defaults[name] or value == defaults[name]  # one fold of several
        if usual or value is None or value is False or name in _TIMES:
            continue
        words.append(f"--{name.replace('_', '-')}")
        words += [] if value is True else map(str, value if isinstance(value, list) else [value])
    return shlex.join(words)


def program(main: Callable[[], object]) -> None:
    """Run a command line; what is wrong with its words or with the disk is one line."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may not know every letter of a path
        sys.stdout.reconfigure(errors="backslashreplace")
    for name in ("SIGTERM", "SIGHUP"):  # of a scheduler, of a terminal that closes
        number = getattr(signal, name, None)  # Windows has one of them
        if number and signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores one
            signal.signal(number, partial(_leave, os.getpid()))
    try:
        main()
    except HDFError as error:  # one of a DataLoader's worker comes with the traceback there
        sys.exit(f"error: {str(error).rpartition('HDFError: ')[2].strip()}")
    except OSError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _leave(own: int, number: int, _: object) -> None:
    """End the run as an error does; a forked worker, which has the handler too, at once."""
    if os.getpid() != own:
        os._exit(128 + number)
    sys.exit(128 + number)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.default is False or action.default == []
        return action.help if silent else super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.train",
        usage="%(prog)s [-h] [@FILE] --output FOLDER [options]",
        description="Train a video network with distributional attention (DAM), the "
        "heterogeneity-aware loss (DSM) and SAM, and write an HTML report. Without --data it shows "
        "photographs of real people, smiling in motion. Under torchrun it trains on all processes. "
        "@FILE reads options from a file, as recipes/hdf_x3d.args; those after it win. Parts of "
        "the library are written as in Python, or named where their defaults will do.",
        formatter_class=_Help,
        fromfile_prefix_chars="@",
    )
    parser.convert_arg_line_to_args = partial(shlex.split, comments=True)  # type: ignore[method-assign]
    for name, fill in (
        ("run", _run),
        ("data", _data),
        ("faces and synthetic", _rendered),
        ("real data", _real),
        ("model", _model),
        ("loss", _loss),
        ("training", _training),
    ):
        fill(parser.add_argument_group(name).add_argument)
    return parser


def _run(add: Callable[..., Any]) -> None:
    add("--output", type=Path, required=True, help="folder of checkpoints and report")
    add("--resume", action="store_true", help="continue the run in --output, bit for bit")
    add("--overwrite", action="store_true", help="start anew where --output holds a run")
    add("--stop-after", type=int, help="stop after this epoch, to be resumed")
    add("--seed", type=int, default=0, help="of everything random")
    add("--device", help="cpu, cuda, …; a GPU if there is one")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes that draw or decode")


def _data(add: Callable[..., Any]) -> None:
    data = "photographs in motion, drawn faces, or the layout of real data"
    add("--data", choices=DATA, default="faces", help=data)
    add("--size", type=int, default=32, help="side of the frames in pixels")
    add("--frames", type=int, default=16, help="frames per clip")


def _rendered(add: Callable[..., Any]) -> None:
    add("--clips", type=int, default=1200, help="training clips")
    add("--sources", nargs="+", help="styles of the clips; by default four, less those of the test")
    add("--test-sources", nargs="+", help="styles of the test clips, if others")


def _real(add: Callable[..., Any]) -> None:
    several = "test fold of dfew, mafw or cremad, 1 to 5; several give mean ± std"
    add("--root", type=Path, help="folder of the data, as released")
    add("--fold", type=int, nargs="+", default=[1], help=several)
    add("--lists", nargs=2, metavar=("TRAIN", "TEST"), help="'<path> <frames> <label>' per line")
    add("--classes", nargs="+", type=_text, help="with --lists: class names in label order")
    add("--val-fraction", type=float, default=0.1, help="share of training clips for validation")
    add("--skip", nargs="+", choices=("missing", "broken"), default=[], help="leave such clips out")
    add("--cache", action="store_true", help="keep decoded clips in memory")


def _text(word: str) -> str:
    """Escape what is no text: bytes in another encoding than the terminal's."""
    return word.encode("utf-8", "backslashreplace").decode()


def _model(add: Callable[..., Any]) -> None:
    attention = "none, or with options: DistributionalAttention(consistency='bins')"
    add("--model", default="small", help=f"one of {', '.join(NAMES)}")
    add("--pretrained", action="store_true", help="start from published weights")
    add("--attention", default="DistributionalAttention()", help=attention)


def _loss(add: Callable[..., Any]) -> None:
    weighting = "robust weights of the clips: none, cvar, Trim(CVaR(0.5), 0.1) …"
    contrastive = "none, robust, RobustContrastive(memory=256, across_groups=True) …"
    add("--weighting", default="none", help=weighting)
    add("--contrastive", default="robust", help=contrastive)
    add("--bottleneck", type=float, default=0.1, help="weight of the covariance trace")
    add("--balance", default="gradient-norm", help="or GradientNorm(alpha=10), Fixed(1, 0.1) …")
    add("--label-smoothing", type=float, default=0.0, help="of the cross-entropy")


def _training(add: Callable[..., Any]) -> None:
    add("--rho", type=float, default=0.05, help="radius of SAM; 0: without SAM")
    add("--epochs", type=int, default=14, help="passes over the training clips")
    add("--batch-size", type=int, default=48, help="clips per step and process")
    add("--lr", type=float, default=3e-3, help="peak learning rate of AdamW, then a cosine")
    add("--weight-decay", type=float, default=0.05, help="of AdamW")
    add("--clip-grad", type=float, default=float("inf"), help="largest gradient norm")
    add("--amp", action="store_true", help="mixed precision")
