"""The notebook runs from its first cell to its last, needing nothing but the package."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs/notebooks/first_steps.ipynb"


def printed(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream")


@pytest.mark.cpu_only
def test_it_runs_and_learns(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # where the package is, unless it is installed
    notebook = nbformat.read(FILE, as_version=4)
    kernel = {"kernel_name": "python3", "resources": {"metadata": {"path": str(tmp_path)}}}
    NotebookClient(notebook, timeout=120, coalesce_streams=True, **kernel).execute()
    lines = printed(notebook).splitlines()
    assert "the same outputs: True" in lines
    reached = [int(line.split("%")[0]) for line in lines if "held-out" in line]
    assert len(reached) == 4
    assert min(reached[1], reached[3]) > 50  # guessing gets a fifth right


def test_its_outputs_are_committed_and_small():
    notebook = nbformat.read(FILE, as_version=4)
    assert "the same outputs: True" in printed(notebook)
    assert FILE.read_text().count("image/png") == 3
    assert FILE.stat().st_size < 150_000
