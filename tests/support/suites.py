"""Other people's tests of their optimizers, with a SAM of vanishing radius around each.

``python -m tests.support.suites --pytorch DIR --pytorch-optimizer DIR``, where DIR is a checkout,
at best of the installed version. Each suite runs twice, bare and wrapped; what fails only wrapped
is printed, with its message. docs/loops.md says why those that are left do.
"""

import argparse
import inspect
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from torch.optim import Optimizer

from hdf_modules import SAM, HDFError

PYTORCH = ("test/test_optim.py", "test/optim/test_lrscheduler.py", "test/optim/test_swa_utils.py")
PYTORCH_OPTIMIZER = ("tests",)
RADIUS = 1e-30


def refused(kind):
    """Tell whether SAM refuses this optimizer: another SAM, or one that needs its closure."""
    closure = inspect.signature(kind.step).parameters.get("closure")
    needed = closure is not None and closure.default is inspect.Parameter.empty
    return needed or kind.__name__.endswith("SAM")


def wrap_all():
    """Let every optimizer that is built come in a SAM, but for those that it refuses."""
    building = []

    def new(cls, *args, **kwargs):
        bare = object.__new__(cls)
        # without arguments it is a copy; what an optimizer builds inside of it stays its own
        if building or not (args or kwargs) or cls is Optimizer or refused(cls):
            return bare
        building.append(cls)
        try:
            bare.__init__(*args, **kwargs)
            return SAM(bare, RADIUS)
        except HDFError:  # an optimizer around one that is in a SAM already, or around none
            return bare
        finally:
            building.pop()

    Optimizer.__new__ = new
    # their loops step without a second pass, too
    warnings.filterwarnings("ignore", message=r"SAM.step\(.* is a plain step")


class Failures:
    """A pytest plugin that notes what fails, and its last line."""

    def __init__(self):
        self.found, self.number = {}, 0

    def pytest_runtest_logreport(self, report):
        self.number += report.when == "call"
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            said = crash.message.splitlines() if crash else [str(report.longrepr)[-200:]]
            self.found[report.nodeid] = said[0][:160] if said else ""

    def pytest_collectreport(self, report):
        if report.failed:
            self.found[report.nodeid] = str(report.longrepr)[-200:]


def run(output, wrapped, *arguments):
    if wrapped == "wrapped":
        wrap_all()
    plugin = Failures()
    quiet = ["-q", "--tb=short", "-p", "no:cacheprovider", "-o", "addopts="]
    pytest.main([*quiet, *arguments], plugins=[plugin])
    Path(output).write_text(json.dumps([plugin.found, plugin.number]))


def failures(folder, files, wrapped, options):
    """Run in a process of its own, whose working directory is the checkout."""
    repository = str(Path(__file__).parents[2])
    path = os.pathsep.join([repository, os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / "failures.json"
        command = [sys.executable, __file__, "--run", str(output), wrapped, *files, *options]
        subprocess.run(
            command,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        return json.loads(output.read_text())


def compare(name, folder, files, options):
    files = [file for file in files if (Path(folder) / file).exists()]
    bare, _ = failures(folder, files, "bare", options)
    found, number = failures(folder, files, "wrapped", options)
    own = {test: message for test, message in found.items() if test not in bare}
    print(f"{name}: {number} tests, {len(bare)} fail bare, {len(own)} more in SAM")
    together = {}
    for test, message in own.items():
        together.setdefault((test.partition("[")[0], message), []).append(test)
    for (test, message), those in together.items():
        print(f"  {len(those)} × {test}\n    {message}\n    such as {those[0]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pytorch", help="a checkout of pytorch/pytorch")
    parser.add_argument("--pytorch-optimizer", help="a checkout of kozistr/pytorch_optimizer")
    arguments, options = parser.parse_known_args()  # the others are pytest's
    print(f"torch {torch.__version__}")
    if arguments.pytorch:
        compare("pytorch", arguments.pytorch, PYTORCH, options)
    if arguments.pytorch_optimizer:
        compare("pytorch_optimizer", arguments.pytorch_optimizer, PYTORCH_OPTIMIZER, options)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run(*sys.argv[2:])
    else:
        main()
