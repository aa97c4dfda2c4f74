"""Records: what is kept of an older one, and that those of the repository give its reports."""

import json
import shutil
from argparse import Namespace
from importlib import import_module
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import benchmarks
from benchmarks.__main__ import main
from benchmarks.evidence import gates_report, report
from benchmarks.evidence.command import plan
from benchmarks.evidence.settings import GATES, PRESETS
from benchmarks.machine import describe, line
from benchmarks.markdown import page, table
from benchmarks.record import Part, merge, update
from examples.train.report.style import styled

ROOT = Path(benchmarks.__file__).parent
RUN = ("cpu-weights", "digits", "faces", "faces-48")  # of which every run is in the repository
GATED = ("digits", "faces-short")
COSTS = [
    path
    for name in ("attention", "loss", "sam", "scaling")
    for path in sorted((ROOT / name / "results").glob("*.json"))
]


def test_rows_of_the_same_machine_stay_in_order_of_their_size():
    old = {"machine": {"threads": 1}, "rows": [{"n": 4, "ms": 1}, {"n": 1, "ms": 1}]}
    new = merge(old, [{"n": 2, "ms": 2}, {"n": 1, "ms": 2}], ("n",), {"threads": 1})
    assert [(row["n"], row["ms"]) for row in new["rows"]] == [(1, 2), (2, 2), (4, 1)]
    names = [{"name": name} for name in "cab"]
    assert merge({"machine": {}, "rows": names[:2]}, names[2:], ("name",), {})["rows"] == names


def test_rows_of_another_machine_or_source_are_dropped_aloud(capsys):
    old = {"machine": describe() | {"sources": "other"}, "rows": [{"n": 1}, {"n": 2}]}
    new = merge(old, [{"n": 2}], ("n",), describe())
    assert new == {"machine": describe(), "rows": [{"n": 2}]}
    assert "1 rows of another machine, version or source are gone" in capsys.readouterr().out


def test_without_a_key_all_rows_are_replaced():
    old = {"machine": {}, "rows": [{"n": 1}]}
    assert merge(old, [{"n": 2}], (), {})["rows"] == [{"n": 2}]


def test_a_page_says_which_part_is_of_which_machine():
    parts = {
        name: {"machine": describe() | {"sources": name}, "rows": [{"ms": name}]} for name in "ab"
    }
    tables = {
        name: lambda rows: ["## Part", "", *table(["ms"], [[rows[0]["ms"]]])] for name in "ab"
    }
    text = page("Title", "sam", parts, tables)
    for name, part in parts.items():
        assert f"## Part\n\n{line(part['machine'])}\n\n| ms |\n|---|\n| {name} |\n" in text
        alone = page("Title", "sam", {name: part}, tables)
        assert alone.startswith(f"# Title\n\n{line(part['machine'])}\n\nHow it is measured")


def test_a_measurement_prints_its_machine_and_a_report_does_not(tmp_path, capsys):
    output = ["--output", str(tmp_path)]
    main(["loss", "positives", *output])
    assert f"{line(describe() | {'threads': 1})}\n" in capsys.readouterr().out
    main(["loss", "report", *output])
    assert capsys.readouterr().out == ""


def test_a_part_that_fails_takes_neither_its_rows_nor_another_part_with_it(tmp_path, capsys):
    def fail(_):
        yield {"n": 1}
        raise RuntimeError("no stable run")

    drawn, path = [], tmp_path / "results" / "record.json"
    parts = {"a": Part(fail), "b": Part(lambda _: [{"n": 2}])}
    with pytest.raises(SystemExit, match="failed: a"):
        update(path, parts, Namespace(parts=[]), lambda record, _: drawn.append({*record}))
    found = json.loads(path.read_text())
    assert {name: part["rows"] for name, part in found.items()} == {
        "a": [{"n": 1}],
        "b": [{"n": 2}],
    }
    assert drawn == [{"a", "b"}]
    assert "RuntimeError: no stable run" in capsys.readouterr().err


@pytest.mark.parametrize("record", COSTS, ids=lambda path: path.stem)
def test_axes_show_no_source_of_a_formula(record, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    report = import_module(f"benchmarks.{record.parts[-3]}.report")
    with styled():
        report.write(json.loads(record.read_text()), tmp_path / record.name)
        for figure in drawn:
            figure.draw_without_rendering()
    axes = [axis for figure in drawn for part in figure.axes for axis in (part.xaxis, part.yaxis)]
    labels = [label.get_text() for axis in axes for label in axis.get_ticklabels()]
    assert labels
    assert not [label for label in labels if "$" in label]


@pytest.mark.parametrize("record", COSTS, ids=lambda path: path.stem)
def test_committed_records_give_the_committed_reports(record, tmp_path):
    results, (name, _, device) = record.parent, record.stem.partition("_")
    shutil.copy(record, tmp_path)
    main([name, "report", "--output", str(tmp_path), *(["--device", device] if device else [])])
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == sorted(path.name for path in results.glob(f"{record.stem}*"))
    (page,) = tmp_path.glob("*.md")
    assert page.read_text() == (results / page.name).read_text()
    assert json.loads(record.read_text()) == json.loads((tmp_path / record.name).read_text())


@pytest.mark.parametrize(
    ("folder", "settings", "preset"),
    [
        *((f"evidence_{name}", PRESETS[name].rows, PRESETS[name]) for name in RUN),
        *((f"evidence_gates_{name}", GATES, PRESETS[name]) for name in GATED),
    ],
)
def test_committed_runs_are_found_again(folder, settings, preset):
    """Their names are made of settings, so a change of these would have all of them run anew."""
    known = {f"{job.key}.json" for job in plan(settings, preset)}
    files = {path.name for path in (ROOT / "evidence/results" / folder).iterdir()}
    assert files
    assert files <= known


@pytest.mark.parametrize("name", GATED)
def test_the_committed_gates_give_the_committed_tables(name):
    path = ROOT / "evidence/results" / f"evidence_gates_{name}.json"
    text = gates_report.page(json.loads(path.read_text()))
    assert text == path.with_suffix(".md").read_text()


@pytest.mark.parametrize("name", ["cpu", *RUN])
def test_the_committed_evidence_gives_the_committed_report(name):
    path = ROOT / "evidence/results" / f"evidence_{name}.json"
    text = report.page(json.loads(path.read_text()), path.stem)
    assert text == path.with_suffix(".md").read_text()


def test_evidence_without_runs_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["evidence", "report", "cpu", "--folder", str(tmp_path), "--output", str(tmp_path)])
    assert "report: expected runs of ce, found none" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
