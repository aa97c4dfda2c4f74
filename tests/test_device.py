"""Tests of the package run on the device that HDF_TEST_DEVICE names: what they make says where."""

import ast
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
ROOMS = ("attention", "backbones", "loss", "sam", ".")
FILES = [path for room in ROOMS for path in sorted((FOLDER / room).glob("test_*.py"))]
FACTORIES = {"arange", "as_tensor", "empty", "eye", "full", "linspace", "logspace", "normal"}
FACTORIES |= {"ones", "rand", "randint", "randn", "randperm", "tensor", "zeros"}


def without_a_device(node):
    """Yield calls of torch's factories, and generators, that get no device.

    Left out are tests about processors alone, and parameters of a module, which move with it.
    """
    if getattr(node, "name", "") == "__init__" or any("cpu_only" in mark for mark in marks(node)):
        return
    if isinstance(node, ast.Call):
        module, _, name = ast.unparse(node.func).partition(".")
        given = any(keyword.arg in ("device", None) for keyword in node.keywords)
        made = name in FACTORIES and not given
        if module == "torch" and (made or (name == "Generator" and not node.args)):
            yield f"line {node.lineno}: {ast.unparse(node)}"
    for child in ast.iter_child_nodes(node):
        yield from without_a_device(child)


def marks(node):
    """Return the marks of a module, or of a class or function, as text."""
    lines = node.body if isinstance(node, ast.Module) else getattr(node, "decorator_list", [])
    return [text for text in map(ast.unparse, lines) if text.startswith("pytest")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_tensors_and_generators_are_made_on_the_device(path):
    assert list(without_a_device(ast.parse(path.read_text()))) == []
