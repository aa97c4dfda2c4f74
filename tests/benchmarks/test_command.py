"""One command starts every benchmark, lists them, and names what it does not know."""

import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks
from benchmarks.__main__ import TOPICS, main

ROOT = Path(benchmarks.__file__).parent


def test_every_topic_is_a_folder_with_results_of_its_name():
    assert set(TOPICS) == {path.parent.name for path in ROOT.glob("*/command.py")}
    for name in TOPICS:
        results = list((ROOT / name / "results").iterdir())
        assert {path.suffix for path in results if path.is_file()} == {".json", ".md", ".png"}
        assert all(path.name.startswith(name) for path in results)


def test_help_lists_every_topic_with_its_line():
    command = [sys.executable, "-m", "benchmarks", "--help"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT.parent)
    for name, manual in TOPICS.items():
        assert f"  {name:10} {manual.splitlines()[0]}\n" in shown.stdout


@pytest.mark.parametrize("name", TOPICS)
def test_each_has_a_manual(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: python -m benchmarks {name} ")
    assert TOPICS[name].strip() in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: NAME"),
        (["speed"], "invalid choice: 'speed' (choose from "),
        (["attention", "x"], "some of modules, sweep, counts, backbones, import, report, found x"),
        (["loss", "x"], "some of contrastive, memory, ranks, weights, positives, report, found x"),
        (["sam", "x"], "PART: expected some of steps, waits, report, found x"),
        (["scaling", "report", "--output", "nowhere"], "expected a record, found no nowhere"),
        (["evidence", "run", "cpu", "--only", "x"], "--only: expected some of ce, "),
        (["evidence", "run", "cpu", "--shard", "3/2"], "expected I/N with 1 <= I <= N, found 3/2"),
    ],
)
def test_what_is_unknown_is_refused_with_what_is_known(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    shown = capsys.readouterr().err
    assert message in shown
    if arguments == ["speed"]:
        assert all(name in shown for name in TOPICS)
