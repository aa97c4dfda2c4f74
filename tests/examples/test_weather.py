"""The command line in bad weather: what goes wrong outside is one line, and nothing is lost."""

import base64
import json
import multiprocessing
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
import warnings
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib import font_manager
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from examples.train import checkpoint, progress, visualize
from examples.train import run as train_run
from examples.train.data.files import Row, collect, lines
from examples.train.metrics import Predictions
from examples.train.options import parse, program
from examples.train.report import style
from examples.train.report.figures import feature_map
from examples.train.run import main
from hdf_modules import HDFError
from tests.support.clips import write_video

ROOT = Path(__file__).parents[2]
# Chinese, Arabic (joined letters, from right to left), an emoji; brackets are markup to rich, and
# dollars are formulas to matplotlib.
NAMES = ("高兴", "سعيد", "😢 $a$")
SMALL = "--data synthetic --clips 24 --size 16 --frames 4 --batch-size 8 --workers 0 --device cpu"


def small(output: Path, *more: str) -> list[str]:
    return ["--output", str(output), *SMALL.split(), *more]


def started(output: Path, *more: str) -> subprocess.Popen:
    """The command line in a process of its own, once it has saved an epoch."""
    command = [sys.executable, "-m", "examples.train", *small(output, *more)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    before = (output / "last.pt").stat().st_mtime_ns if (output / "last.pt").exists() else 0
    run = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 120
    while time.monotonic() < end and run.poll() is None:
        if (output / "last.pt").exists() and (output / "last.pt").stat().st_mtime_ns > before:
            return run
        time.sleep(0.05)
    run.kill()
    raise AssertionError(run.communicate()[1])


@contextmanager
def files_of_at_most(size: int):
    """As ``ulimit -f`` does it, and as a full disk looks to a program."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Broken(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, item):
        raise HDFError("path", "a readable image", "1.jpg", "fetch it again")


def test_an_error_survives_the_workers_of_a_loader(capsys):
    with pytest.raises(
        HDFError, match=r"path: fetch it again; expected a readable image, found 1\.jpg"
    ):
        list(DataLoader(Broken(), num_workers=1))
    with pytest.raises(SystemExit) as stop:
        program(lambda: list(DataLoader(Broken(), num_workers=1)))
    assert str(stop.value) == (
        "error: path: fetch it again; expected a readable image, found 1.jpg"
    )


def test_an_empty_folder_is_missing(tmp_path):
    for name in ("full", "empty"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "full/0.png")
    (tmp_path / "empty/notes.txt").touch()
    rows = [Row("list.txt:1", tmp_path / "full", 0), Row("list.txt:2", tmp_path / "empty", 0)]
    with pytest.raises(HDFError, match=r"1 of 2 missing, the first .*empty of list\.txt:2"):
        collect(rows, ("a",), 8)
    assert len(collect(rows, ("a",), 8, skip_missing=True).rows) == 1


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Clips in folders of every script, and the words of a run that has one of three epochs."""
    root = tmp_path_factory.mktemp("data") / "数据 [x] 😀"
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        lines = []
        for clip in range(count):
            folder = root / NAMES[clip % 3] / f"{split}{clip}"
            folder.mkdir(parents=True)
            for i in range(4):
                picture = rng.integers(0, 256, (16, 16, 3), np.uint8)
                Image.fromarray(picture).save(folder / f"{i}.jpg")
            lines.append(f"{folder.relative_to(root)} 4 {clip % 3}\n")
        (root / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
    before = contents(root)
    output = tmp_path_factory.mktemp("runs") / "خروج [/b] 😀"
    words = [*SMALL.split()[4:], "--epochs", "3", "--val-fraction", "0.3", "--data", "list"]
    words += ["--root", str(root), "--classes", *NAMES]
    words += ["--lists", str(root / "train.txt"), str(root / "test.txt")]
    main(["--output", str(output), *words, "--stop-after", "1", "--workers", "1"])
    assert contents(root) == before  # as if they could only be read
    return output, words


@pytest.fixture
def begun(world, tmp_path):
    """A copy of that run: its folder, and the words that began it."""
    shutil.copytree(world[0], tmp_path / "run")
    return tmp_path / "run", ["--output", str(tmp_path / "run"), *world[1]]


def contents(root: Path) -> dict:
    """Every file and folder, and when it was changed: the test's user may write everywhere."""
    return {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}


def test_names_of_every_script_are_text_in_the_report(world):
    page = (world[0] / "report.html").read_text(encoding="utf-8")
    for name in NAMES:
        assert name in page
    found = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)
    drawings = [base64.b64decode(drawing).decode() for drawing in found]
    assert any(all(name in drawing for name in NAMES) for drawing in drawings)
    assert json.loads((world[0] / "run.json").read_text())["test"]["classes"] == list(NAMES)


def test_a_name_of_other_bytes_than_text_is_escaped():
    words = ["--output", "-", "--classes", os.fsdecode("高".encode("gbk")), "sad"]
    assert parse(words).classes == [r"\udcb8\udcdf", "sad"]


def test_one_class_is_told_before_anything_is_trained(world, tmp_path):
    root = Path(world[1][world[1].index("--root") + 1])
    lists = [tmp_path / name for name in ("train.txt", "test.txt")]
    for path in lists:
        chosen = (root / path.name).read_text(encoding="utf-8").splitlines()[::3]
        path.write_text("\n".join(chosen), encoding="utf-8")
    words = [*world[1], "--lists", *map(str, lists), "--classes", "alone"]
    with pytest.raises(HDFError, match="--classes: expected at least two classes, found alone"):
        main(["--output", str(tmp_path / "run"), *words])


def test_a_single_test_clip_is_drawn_without_a_warning():
    one = torch.zeros(1, dtype=torch.long)
    found = Predictions(one, one, torch.zeros(1, 2), torch.ones(1, 8))
    assert feature_map(found, ["a", "b"], ("all",))[1] == "PCA"


def test_a_name_that_begins_with_an_underscore_is_in_the_legend():
    labels = torch.arange(6) % 2
    found = Predictions(labels, labels, torch.zeros(6, 2), torch.rand(6, 8))
    drawing = feature_map(found, ["_calm", "sad"], ("all", "_web"))[0]
    texts = base64.b64decode(drawing.partition(",")[2]).decode()
    assert all(name in texts for name in ("_calm", "sad", "all", "_web"))


def test_what_no_font_has_is_replaced_with_one_warning(monkeypatch):
    monkeypatch.setattr(style, "_installed", lambda: ())
    words = "no installed font has 兴, 高: .*; install"
    with style.styled(), pytest.warns(UserWarning, match=words) as told:
        assert style.drawable(["高兴", "sad"]) == [r"\u9ad8\u5174", "sad"]
    assert len(told) == 1


def test_a_font_that_has_them_is_found(monkeypatch):
    """As if the style's own font had no letter at all; which others there are is the machine's."""
    letters = style._letters
    with style.styled():
        families = style.mpl.rcParams["font.family"]
        own = font_manager.findfont(font_manager.FontProperties(family=families))
        nothing = frozenset()
        monkeypatch.setattr(style, "_letters", lambda p: nothing if p == own else letters(p))
        assert style.drawable(["Angry"]) == ["Angry"]
        added = style.mpl.rcParams["font.family"][len(families) :]
        assert added
        assert set("Angry") <= frozenset().union(*map(letters, map(font_manager.findfont, added)))


def test_pictures_of_such_a_run_are_drawn(world, tmp_path):
    arguments = ["--checkpoint", str(world[0] / "best.pt"), "--windows", "2"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no installed font has")  # some machines have them all
        visualize.main(["drawn:1", *arguments, "--output", str(tmp_path / NAMES[2])])
    assert (tmp_path / NAMES[2] / "gates.gif").exists()


def test_a_full_disk_leaves_a_run_that_goes_on(begun, capsys):
    folder, words = begun
    before = contents(folder)
    with files_of_at_most(20_000), pytest.raises(SystemExit, match=r"error: .*File too large"):
        program(lambda: main([*words, "--resume"]))
    assert "--resume" in capsys.readouterr().err
    del before[folder]  # a folder changes with what comes and goes in it
    assert contents(folder).items() >= before.items()
    assert not list(folder.glob("*.part"))
    main([*words, "--resume"])
    assert len(checkpoint.load(folder / "last.pt")["history"]["epochs"]) == 3


def test_a_pipe_that_nobody_reads_says_how_to_go_on(begun, capsys, monkeypatch):
    folder, words = begun
    unread, pipe = os.pipe()
    os.close(unread)
    with open(pipe, "w") as closed, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", closed)
        with pytest.raises(SystemExit):
            main([*words, "--resume"])
    assert "--resume" in capsys.readouterr().err
    main([*words, "--resume"])
    assert len(checkpoint.load(folder / "last.pt")["history"]["epochs"]) == 3


def test_a_full_disk_leaves_no_half_of_a_report(tmp_path):
    with files_of_at_most(10), pytest.raises(OSError, match="too large"):
        checkpoint.write_text(tmp_path / "run.json", "x" * 20)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_goes_on_and_a_stopped_one_says_how(tmp_path):
    killed = started(tmp_path, "--epochs", "500")
    with pytest.raises(
        HDFError, match=r"--output: wait for .*expected a folder that no other run writes to"
    ):
        main(small(tmp_path, "--epochs", "500", "--resume"))
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    (tmp_path / "last.pt.123.part").write_bytes(b"half")

    stopped = started(tmp_path, "--epochs", "500", "--resume")
    assert not list(tmp_path.glob("*.123.part"))
    stopped.send_signal(signal.SIGINT)
    _, said = stopped.communicate(timeout=60)
    assert stopped.returncode == 130
    assert "Traceback" not in said
    command = shlex.split(next(line for line in said.splitlines() if "--resume" in line))
    again = small(tmp_path, "--epochs", "500", "--resume")
    assert command == ["python", "-m", "examples.train", *again]
    checkpoint.load(tmp_path / "last.pt")


def test_a_damaged_checkpoint_is_told(tmp_path):
    """Torch loads it without a word: the weights are others than were trained."""
    path = tmp_path / "last.pt"
    checkpoint.save({"model": torch.arange(1000.0)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(500.0, 510.0).numpy().tobytes())] ^= 4
    path.write_bytes(content)
    with pytest.raises(HDFError, match=r"expected a checkpoint that loads, found .*last\.pt.*data"):
        checkpoint.load(path)


def test_a_run_goes_on_where_its_data_is_now_but_with_no_other_data(world, begun, tmp_path):
    _, words = begun
    moved = tmp_path / "moved"
    shutil.copytree(world[1][world[1].index("--root") + 1], moved)
    lists = [str(moved / f"{split}.txt") for split in ("train", "test")]
    words = [*words, "--root", str(moved), "--lists", *lists, "--stop-after", "1", "--resume"]
    main(words)
    clips = Path(lists[0]).read_text(encoding="utf-8").splitlines()
    Path(lists[0]).write_text("\n".join(clips[:-1]), encoding="utf-8")
    with pytest.raises(HDFError, match=r"same data again.*the clips the run began with"):
        main(words)


@pytest.mark.parametrize("error", [None, HDFError("root", "a folder", "none")])
def test_a_new_run_of_several_folds_does_not_go_on_with_an_old_fold(tmp_path, monkeypatch, error):
    """It would after Ctrl-C: folds that are there go on by themselves."""
    old = [tmp_path / f"fold{fold}/{name}" for fold in (1, 2) for name in ("last.pt", "run.json")]
    for path in old:
        path.parent.mkdir(exist_ok=True)
        path.touch()

    def stop(*_):
        raise error or KeyboardInterrupt

    def open_splits(options):
        return stop() if error else SimpleNamespace(left_out=())

    monkeypatch.setattr(train_run, "open_splits", open_splits)
    monkeypatch.setattr(train_run, "build", lambda *_: None)
    monkeypatch.setattr(train_run, "fit", stop)
    words = f"--output {tmp_path} --data dfew --root . --fold 1 2 --overwrite --device cpu"
    with pytest.raises((HDFError, KeyboardInterrupt)):
        main(words.split())
    assert [path for path in old if path.exists()] == (old if error else [])  # lost for nothing


def test_whatever_stops_a_run_says_how_to_go_on(tmp_path, capsys):
    saved, shown = tmp_path / "last.pt", progress.Progress(again="python again")

    def said(error: BaseException) -> str:
        with pytest.raises(type(error)), shown.resumable(saved):
            raise error
        return capsys.readouterr().err

    assert "nothing is saved yet" in said(KeyboardInterrupt())
    saved.touch()
    assert "python again" in said(KeyboardInterrupt())
    assert said(HDFError("resume", "the same options", "others")) == ""
    with shown.epoch(1, 1, 1):
        pass
    assert "python again" in said(HDFError("path", "a readable image", "1.jpg"))
    assert "python again" in said(RuntimeError("out of memory"))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_scheduler_that_stops_a_run_is_answered_like_ctrl_c(name):
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)

    def main():
        assert signal.getsignal(number) is not signal.SIG_DFL
        signal.raise_signal(number)

    try:
        with pytest.raises(SystemExit) as stop:
            program(main)
    finally:
        signal.signal(number, before)
    assert stop.value.code == 128 + number


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_list_may_spell_an_accent_as_another_system_does(tmp_path, form):
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    folder = tmp_path / unicodedata.normalize(form, "café")
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "0.png")
    row = Row("list.txt:1", tmp_path / unicodedata.normalize(other, "café"), 0)
    assert collect([row], ("a",), 8).rows[0].path == folder


def test_a_list_may_be_of_powershell(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("高/1 4 0\r\n高/2 4 1\r\n", encoding="utf-16")
    assert [line for _, line in lines(path)] == ["高/1 4 0", "高/2 4 1"]


def test_a_full_disk_leaves_no_half_of_a_picture(world, tmp_path):
    arguments = ["--checkpoint", str(world[0] / "best.pt"), "--windows", "2"]
    arguments = ["drawn:1", *arguments, "--output", str(tmp_path)]
    (tmp_path / "gates.png").write_bytes(b"of before")
    with warnings.catch_warnings(), files_of_at_most(1000):
        warnings.filterwarnings("ignore", "no installed font has")  # some machines have them all
        with pytest.raises(OSError, match="too large"):
            visualize.main(arguments)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "gates.png": b"of before"
    }


def test_reading_a_film_says_how_much_is_left(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal
    path = write_video(tmp_path / "v.mp4", 6)
    assert len(visualize._open(SimpleNamespace(video=str(path), region=None), 8)) == 6
    assert "reading the video" in capsys.readouterr().out


def test_a_run_is_not_written_over_by_mistake(begun):
    folder, words = begun
    with pytest.raises(
        HDFError, match=r"--output: pass --resume .*expected a new folder, found .*last\.pt"
    ):
        main([*words, "--stop-after", "1"])
    before = (folder / "last.pt").stat().st_mtime_ns
    main([*words, "--stop-after", "1", "--overwrite"])
    assert (folder / "last.pt").stat().st_mtime_ns > before


@pytest.mark.parametrize("content", [[1, 2], {"model": {}, "classes": NAMES, "options": {}}])
def test_a_checkpoint_of_something_else_is_named(begun, content):
    folder, words = begun
    torch.save(content, folder / "last.pt")
    with pytest.raises(HDFError, match=r"--overwrite; expected a checkpoint .*last\.pt"):
        main([*words, "--resume"])


def test_what_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"error: .*file"):
        program(lambda: main(small(tmp_path / "file/run")))


def test_what_takes_time_says_how_much_is_left(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal
    assert list(progress.track(range(4), "Rendering", 4)) == [0, 1, 2, 3]
    shown = capsys.readouterr().out
    assert "Rendering" in shown
    assert re.search(r"\d:\d\d:\d\d|-:--:--", shown)


def test_a_worker_that_is_stopped_says_nothing(capfd):
    """Loaders stop theirs when they are done, in the middle of anything."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)

    class Dropped:
        def __del__(self):  # where Python prints an exception, and goes on
            signal.raise_signal(signal.SIGTERM)

    def main():
        worker = multiprocessing.get_context("fork").Process(target=Dropped)
        worker.start()
        worker.join()
        assert worker.exitcode == 128 + signal.SIGTERM

    try:
        program(main)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capfd.readouterr().err == ""
