"""Every Python block of the README and of the pages runs when copied alone into an empty file."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)```python[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def blocks():
    for page in PAGES:
        text = page.read_text()
        for match in FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 2
            yield pytest.param(page, line, match[1], match[2], id=f"{page.name}:{line}")


@pytest.mark.parametrize(("page", "line", "indent", "code"), list(blocks()))
def test_the_block_runs_alone(page, line, indent, code, device, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some save what they made
    torch.manual_seed(0)
    code = "\n" * (line - 1) + re.sub(f"^{indent}", "", code, flags=re.MULTILINE)
    with device:  # what a block makes is there
        exec(compile(code, str(page), "exec"), {"__name__": "__main__"})


def test_no_block_is_left_out():
    for page in PAGES:
        text = page.read_text()
        assert len(FENCE.findall(text)) == len(re.findall(r"^ *```python", text, re.MULTILINE))
