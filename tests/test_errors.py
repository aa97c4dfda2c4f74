"""Every error names its argument and begins with the way out."""

import ast
import re
from pathlib import Path

import pytest

from hdf_modules import HDFError

ROOT = Path(__file__).parents[1]
EXPLAINS = re.compile(
    r"(a|an|the|it|its|they|one|this|that|here|there|where|because)\b", re.IGNORECASE
)


def hints():
    """Texts of hints, as far as they can be read in the sources: literals and names of them."""
    for file in sorted([*ROOT.glob("hdf_modules/**/*.py"), *ROOT.glob("examples/**/*.py")]):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            texts = []
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "HDFError":
                texts = [node.args[3]] if len(node.args) > 3 else []
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("hint", "again"):
                texts = [node.value]
            for text in texts:
                for part in (text.body, text.orelse) if isinstance(text, ast.IfExp) else (text,):
                    first = part.values[0] if isinstance(part, ast.JoinedStr) else part
                    if isinstance(first, ast.Constant) and first.value:
                        yield f"{file.relative_to(ROOT)}:{node.lineno}", str(first.value)


def test_hints_say_what_to_do_before_they_explain():
    found = dict(hints())
    assert len(found) > 60
    assert {place: text for place, text in found.items() if EXPLAINS.match(text)} == {}


@pytest.mark.parametrize(
    ("hint", "told"),
    [
        ("", "rho: expected a number > 0, found -1"),
        ("try 0.05", "rho: try 0.05; expected a number > 0, found -1"),
        ("did you mean 1?", "rho: did you mean 1? expected a number > 0, found -1"),
    ],
)
def test_the_way_out_comes_first(hint, told):
    assert str(HDFError("rho", "a number > 0", -1, hint)) == told
