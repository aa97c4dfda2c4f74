"""Every Python block of the README and of the pages runs when copied alone into an empty file."""

import importlib
import inspect
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


# Of Lightning itself, with the newest torch and with the blocks' tiny loaders.
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
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


@pytest.mark.parametrize("room", ["", ".attention", ".loss", ".sam", ".backbones"])
def test_every_public_name_is_documented_with_an_example(room):
    module = importlib.import_module(f"hdf_modules{room}")
    page = (ROOT / "docs/api.md").read_text()
    for name in module.__all__:
        homes = [f"hdf_modules.{name}", f"hdf_modules{room}.{name}"]
        assert any(re.search(rf"^::: {home}$", page, re.MULTILINE) for home in homes), name
        assert ">>>" in inspect.getdoc(getattr(module, name)), name
