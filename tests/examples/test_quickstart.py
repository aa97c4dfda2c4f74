"""The quick start is short, stands alone, and learns."""

import ast
from pathlib import Path

import pytest

from examples import quickstart

FILE = Path(quickstart.__file__)


def test_it_imports_nothing_but_the_package_and_torch():
    nodes = list(ast.walk(ast.parse(FILE.read_text())))
    names = [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    names += [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
    assert {name.split(".")[0] for name in names} == {"torch", "hdf_modules"}
    assert len(FILE.read_text().splitlines()) <= 75


@pytest.mark.parametrize("seed", [0, 1])
def test_it_learns(seed, capsys):
    # guessing gets a fifth of the clips right
    assert quickstart.main(seed, epochs=2) > 0.5
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"epoch {i}" for i in (1, 2)]
