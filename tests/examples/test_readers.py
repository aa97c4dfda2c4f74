"""Readers of real layouts, on small JPEG folders and videos that the tests encode."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from examples.train.data.clips import ClipDataset, sample_frames
from examples.train.data.cremad import BROKEN, read_cremad
from examples.train.data.dfew import read_dfew
from examples.train.data.ferv39k import read_ferv39k
from examples.train.data.lists import read_list
from examples.train.data.mafw import CLASSES as MAFW
from examples.train.data.mafw import read_mafw
from examples.train.data.video import read_frames
from hdf_modules import HDFError
from tests.support.clips import write_folder, write_video


def brightness(frames) -> list[int]:
    return [round(float(frame.mean()) / 10) for frame in frames]


class TestFrames:
    @pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "libx264"), (".flv", "flv")])
    def test_video_frames_are_the_ones_picked(self, tmp_path, suffix, codec):
        path = write_video(tmp_path / f"v{suffix}", 20, codec)
        assert brightness(read_frames(path, 16)) == list(range(20))
        picked = read_frames(path, 16, lambda n: np.array([0, n // 2, n - 1]))
        assert picked.shape == (3, 16, 16, 3)
        assert brightness(picked) == [0, 10, 19]

    def test_a_window_is_cut_out_of_a_video(self, tmp_path):
        path = write_video(tmp_path / "v.mp4", 20)
        assert brightness(read_frames(path, 16, window=(5, 9))) == [5, 6, 7, 8, 9]

    def test_a_region_is_cut_out_of_every_frame(self, tmp_path):
        image = Image.new("RGB", (40, 20), "black")
        image.paste("white", (25, 5, 35, 15))
        image.save(tmp_path / "0.png")
        assert read_frames(tmp_path, 10, region=(25, 5, 35, 15)).min() == 255
        assert read_frames(tmp_path, 10, region=(0, 0, 20, 20)).max() == 0

    @pytest.mark.parametrize("region", [(0, 0, 33, 24), (5, 0, 5, 9), (-1, 0, 9, 9)])
    def test_a_region_outside_the_frame_is_named(self, tmp_path, region):
        path = write_video(tmp_path / "v.mp4", 3)
        with pytest.raises(HDFError, match=r"inside 32×24 pixels, found \(.*\) for .*v.mp4"):
            read_frames(path, 16, region=region)

    @pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tif"])
    def test_folders_are_read_in_numeric_order(self, tmp_path, suffix):
        folder = write_folder(tmp_path / "clip", 12, suffix=suffix)
        assert brightness(read_frames(folder, 16)) == list(range(12))

    def test_the_centre_is_cut_out(self, tmp_path):
        image = np.zeros((10, 30, 3), np.uint8)
        image[:, 10:20] = 255
        Image.fromarray(image).save(tmp_path / "0.png")
        assert read_frames(tmp_path, 10).min() > 200

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda p: p / "none.mp4", "path: expected an existing video or folder"),
            (lambda p: p, r"expected at least one frame, found 0 in"),
            (lambda p: write_bytes(p / "v.mp4", b"no video"), "expected a readable video, .*v.mp4"),
            (lambda p: write_bytes(p / "1.jpg", b"no image").parent, "a readable image, .*1.jpg"),
        ],
    )
    def test_what_cannot_be_read_is_named(self, tmp_path, make, message):
        with pytest.raises(HDFError, match=message):
            read_frames(make(tmp_path), 16)

    def test_a_window_past_the_end_is_named(self, tmp_path):
        path = write_video(tmp_path / "v.mp4", 5)
        with pytest.raises(HDFError, match="at least 9 frames, found 5 in"):
            read_frames(path, 16, window=(2, 8))


def write_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


class TestSampling:
    @given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 9))
    def test_one_frame_of_every_segment_in_order(self, available, wanted, seed):
        for rng in (None, np.random.default_rng(seed)):
            chosen = sample_frames(available, wanted, rng)
            assert len(chosen) == wanted
            assert (np.diff(chosen) >= 0).all()
            assert chosen[0] >= 0
            assert chosen[-1] < available
            if available > wanted:
                low = np.floor(np.arange(wanted) * available / wanted)
                high = np.ceil((np.arange(wanted) + 1) * available / wanted)
                assert ((chosen >= low) & (chosen < high)).all()

    def test_testing_takes_midpoints_and_training_varies(self):
        assert sample_frames(160, 16).tolist() == list(range(5, 160, 10))
        draws = {tuple(sample_frames(160, 16, np.random.default_rng(seed))) for seed in range(5)}
        assert len(draws) == 5

    def test_short_clips_repeat_the_edge(self):
        assert sample_frames(2, 4).tolist() == [0, 1, 1, 1]

    def test_no_frames_is_an_error(self):
        with pytest.raises(HDFError, match="at least one frame each, found \\(0, 4\\)"):
            sample_frames(0, 4)


class TestSharedList:
    def write(self, root, train, test):
        files = [root / "train.txt", root / "test.txt"]
        for file, text in zip(files, (train, test), strict=True):
            file.write_text(text)
        return files

    def test_folders_videos_and_windows(self, tmp_path):
        write_folder(tmp_path / "a/with space", 7)
        write_video(tmp_path / "b/v.mp4", 20)
        files = self.write(tmp_path, "a/with space 99 0\r\nb/v.mp4 20 1\r\n", "b/v.mp4#4-9 6 1\n")
        train, test = read_list(files, tmp_path, size=16, classes=("low", "high"))
        assert [clip.label for clip in train.clips] == [0, 1]
        assert [train.groups[clip.group] for clip in train.clips] == ["a", "b"]
        assert len(train.frames(0)) == 7
        assert brightness(test.frames(0)) == [4, 5, 6, 7, 8, 9]
        assert test.clips[0].name.endswith("b/v.mp4#4-9")

    def test_windows_and_regions_are_read_from_the_path(self, tmp_path):
        write_video(tmp_path / "v@home.mp4", 6)
        names = ["v@home.mp4", "v@home.mp4#1-3", "v@home.mp4@4,0,28,24", "v@home.mp4#1-3@4,0,28,24"]
        files = self.write(tmp_path, "".join(f"{name} 6 0\n" for name in names), "v@home.mp4 6 1\n")
        rows = read_list(files, tmp_path)[0].rows
        assert [row.window for row in rows] == [None, (1, 3), None, (1, 3)]
        assert [row.region for row in rows] == [None, None, (4, 0, 28, 24), (4, 0, 28, 24)]
        assert {row.path.name for row in rows} == {"v@home.mp4"}

    @pytest.mark.parametrize("base", [0, 1])
    def test_the_label_base_is_detected_over_both_files(self, tmp_path, base):
        write_folder(tmp_path / "x", 2)
        train = f"x 2 {base}\nx 2 {base + 1}\n"
        files = self.write(tmp_path, train, f"x 2 {base + 2}\n")
        found = read_list(files, tmp_path, classes=("p", "q", "r"))
        assert [clip.label for part in found for clip in part.clips] == [0, 1, 2]

    @pytest.mark.parametrize(
        ("train", "message"),
        [
            ("x 2\n", r"'<path> <frames> <label>', found 'x 2' at .*train.txt:1"),
            ("x 2 0\n\nx two 0\n", r"number of frames as an integer, found 'two' at .*train.txt:3"),
            ("x 2 one\n", r"label as an integer, found 'one' at .*train.txt:1"),
            ("x 2 0\nx 2 3\n", r"labels 0\.\.2, found 3 at .*train.txt:2"),
            ("x 2 2\n", r"counted from 0 or from 1, found labels from 2 to 2"),
            ("", r"at least one line, found an empty file .*train.txt"),
            ("x 2 0\ngone 2 1\n", r"1 of 2 missing, the first .*gone of .*train.txt:2"),
        ],
    )
    def test_bad_lines_are_named(self, tmp_path, train, message):
        write_folder(tmp_path / "x", 2)
        files = self.write(tmp_path, train, "x 2 2\n")
        with pytest.raises(HDFError, match=message):
            read_list(files, tmp_path, classes=("p", "q", "r"))

    def test_without_names_no_class_is_left_out(self, tmp_path):
        write_folder(tmp_path / "x", 2)
        files = self.write(tmp_path, "x 2 0\nx 1 20260101\n", "x 2 1\n")
        with pytest.raises(HDFError, match=r"by --classes; expected labels .*train\.txt:2"):
            read_list(files, tmp_path)

    def test_missing_clips_are_skipped_on_request(self, tmp_path):
        write_folder(tmp_path / "x", 2)
        files = self.write(tmp_path, "x 2 0\ngone 2 1\n", "x 2 1\n")
        train, _ = read_list(files, tmp_path, skip_missing=True)
        assert len(train.clips) == 1
        assert len(train.left_out) == 1
        assert "train.txt:2 is missing" in train.left_out[0]

    def test_broken_clips_are_found_and_left_out(self, tmp_path):
        write_folder(tmp_path / "x", 2)
        write_bytes(write_folder(tmp_path / "bad", 2) / "1.jpg", b"cut")
        train, _ = read_list(self.write(tmp_path, "bad 2 0\nx 2 1\n", "x 2 1\n"), tmp_path, size=16)
        broken = train.broken()
        assert list(broken) == [0]
        assert "bad/1.jpg" in broken[0]
        assert "train.txt:1" in broken[0]
        kept = train.without(broken)
        assert [clip.label for clip in kept.clips] == [1]
        assert kept.left_out == (broken[0],)
        with pytest.raises(HDFError, match=r"root: fetch .* 1 broken ones, the first .*bad/1\.jpg"):
            kept.without({0: broken[0]})

    def test_worker_processes_change_nothing(self, tmp_path):
        for i in range(4):
            write_video(tmp_path / f"{i}.mp4", 20)
        write_folder(tmp_path / "x", 20)
        lines = [f"{i}.mp4 20 0\n" for i in range(4)] + ["x 20 1\n"]
        train, _ = read_list(self.write(tmp_path, "".join(lines), "x 20 1\n"), tmp_path, size=16)
        dataset = ClipDataset(train, 4, training=True, seed=3)
        alone, together = (
            torch.cat([batch["clip"] for batch in DataLoader(dataset, 2, num_workers=workers)])
            for workers in (0, 2)
        )
        assert torch.equal(alone, together)


class TestFERV39k:
    def make(self, root, train="Crime/Angry/0063 Angry\n", test="Daily/Fear/0001 Fear\n"):
        setup = root / "4_setups/All_scenes"
        setup.mkdir(parents=True)
        (setup / "train_All.csv").write_text(train)
        (setup / "test_All.csv").write_text(test)
        for name in ("Crime/Angry/0063", "Daily/Fear/0001"):
            write_folder(root / "2_ClipsforFaceCrop" / name, 3)
        return root

    def test_scenes_are_groups(self, tmp_path):
        train, test = read_ferv39k(self.make(tmp_path), size=16)
        assert train.classes[train.clips[0].label] == "angry"
        assert test.classes[test.clips[0].label] == "fear"
        assert train.groups == test.groups == ("Crime", "Daily")
        assert test.clips[0].group == 1
        assert train.frames(0).shape == (3, 16, 16, 3)

    def test_an_unknown_class_is_named(self, tmp_path):
        root = self.make(tmp_path, train="Crime/Angry/0063 Cross\n")
        with pytest.raises(HDFError, match=r"'Crime/Angry/0063 Cross' at .*train_All.csv:1"):
            read_ferv39k(root)


class TestDFEW:
    OFFICIAL = "EmoLabel_DataSplit/{0}(single-labeled)/set_1.csv"

    def make(
        self, root, pattern=OFFICIAL, base=1, frames="Clip/clip_224x224", header="video_name,label"
    ):
        for split, name, label in (("train", "00001", 0), ("train", "2", 6), ("test", "00003", 3)):
            file = root / pattern.format(split)
            file.parent.mkdir(parents=True, exist_ok=True)
            before = file.read_text() if file.exists() else f"{header}\n"
            file.write_text(f"{before}{name},{label + base}\n")
            write_folder(root / frames / name.zfill(5), 3)
        return root

    @pytest.mark.parametrize("base", [0, 1])
    @pytest.mark.parametrize(
        "pattern",
        [OFFICIAL, "label/single_{0}set_1.csv", "{0}_set_1.csv"],
        ids=["official", "label", "s2d"],
    )
    def test_layouts_and_label_bases(self, tmp_path, pattern, base):
        train, test = read_dfew(self.make(tmp_path, pattern, base), size=16)
        assert [train.classes[clip.label] for clip in train.clips] == ["happy", "fear"]
        assert [test.classes[clip.label] for clip in test.clips] == ["angry"]
        assert len(train.frames(1)) == 3

    def test_the_16_frame_release(self, tmp_path):
        train, _ = read_dfew(self.make(tmp_path, frames="Clip/clip_224x224_16f"), size=16)
        assert len(train.frames(0)) == 3

    def test_a_missing_fold_lists_where_it_looked(self, tmp_path):
        with pytest.raises(HDFError, match=r"fold 2, one of EmoLabel_DataSplit/train"):
            read_dfew(self.make(tmp_path), fold=2)
        with pytest.raises(HDFError, match="fold: expected 1 to 5, found 6"):
            read_dfew(tmp_path, fold=6)

    def test_a_wrong_header_is_named(self, tmp_path):
        with pytest.raises(HDFError, match=r"header 'video_name,label', found 'a,b' at .*:1"):
            read_dfew(self.make(tmp_path, header="a,b"))

    def test_bad_lines_are_named(self, tmp_path):
        file = self.make(tmp_path) / self.OFFICIAL.format("train")
        for line, message in (
            ("00004;3", r"'video_name,label', found '00004;3' at .*set_1.csv:4"),
            ("00004,x", r"label as an integer, found 'x' at .*set_1.csv:4"),
            ("00001,8", r"labels 1\.\.7, found 8 at .*set_1.csv:4"),
            ("00004,3", r"1 of 3 missing, the first .*00004 of .*set_1.csv:4"),
        ):
            text = file.read_text()
            file.write_text(f"{text}{line}\n")
            with pytest.raises(HDFError, match=message):
                read_dfew(tmp_path)
            file.write_text(text)


class TestMAFW:
    def make(self, root, labels="single/no_caption/set_2", tail="", encoding="utf-8", videos=False):
        folder = root / labels
        folder.mkdir(parents=True)
        for split, rows in (
            ("train", ("03747.mp4 anger", "00002.mp4 disappointment")),
            ("test", ("09999.mp4 happiness",)),
        ):
            text = "".join(f"{row}{tail}\r\n" for row in rows)
            (folder / f"{split}.txt").write_bytes(text.encode(encoding))
            for name in (row.split()[0] for row in rows):
                if videos:
                    write_video(root / "data/clips" / name, 3)
                else:
                    write_folder(root / "data/frames" / Path(name).stem, 3, suffix="png")
        return root

    def test_labels_are_told_by_name_in_the_order_chosen(self, tmp_path):
        self.make(tmp_path)
        for order in (MAFW, tuple(sorted(MAFW))):
            train, test = read_mafw(tmp_path, fold=2, size=16, order=order)
            named = [train.classes[clip.label] for clip in (*train.clips, *test.clips)]
            assert named == ["anger", "disappointment", "happiness"]
            assert train.clips[1].label == order.index("disappointment")
        assert brightness(test.frames(0)) == [0, 1, 2]

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gbk"])
    def test_captions_in_either_encoding_are_passed_over(self, tmp_path, encoding):
        labels = "single/with_caption/set_2"
        self.make(tmp_path, labels, tail=" 一个女生\x0b眼含泪水", encoding=encoding, videos=True)
        train, _ = read_mafw(tmp_path, fold=2, size=16)
        assert [clip.label for clip in train.clips] == [0, 10]
        assert brightness(train.frames(1)) == [0, 1, 2]

    def test_bad_input_is_named(self, tmp_path):
        root = self.make(tmp_path)
        with pytest.raises(HDFError, match=r"fold 1, one of single/no_caption/set_1/train.txt"):
            read_mafw(root)
        with pytest.raises(HDFError, match="fold: expected 1 to 5, found 0"):
            read_mafw(root, fold=0)
        with pytest.raises(HDFError, match=r"order: expected each of anger, .* once, found anger"):
            read_mafw(root, order=("anger",))
        file = root / "single/no_caption/set_2/test.txt"
        for content, message in (
            (b"1.mp4 anger\r\n2.mp4 joy\r\n", r"found '2.mp4 joy' at .*test.txt:2"),
            (b"1.mp4\r\n", r"found '1.mp4' at .*test.txt:1"),
            (b"09999.mp4 fear\r\n1.mp4 fear\r\n", r"1 of 2 missing, the first .*frames/1 of .*:2"),
            (b"1.mp4 \xff\xff\r\n", "save it as UTF-8; .*, found neither in .*test.txt"),
        ):
            file.write_bytes(content)
            with pytest.raises(HDFError, match=message):
                read_mafw(root, fold=2)


class TestCREMAD:
    def make(self, root, names=()):
        for actor in range(1001, 1008):
            for code in ("IEO_HAP_LO", "MTI_NEU_XX"):
                write_video(root / f"VideoFlash/{actor}_{code}.flv", 3, "flv")
        for name in names:
            write_bytes(root / f"VideoFlash/{name}.flv", b"")
        return root

    def test_folds_share_no_actor_and_test_everyone_once(self, tmp_path):
        self.make(tmp_path)
        tested = []
        for fold in range(1, 6):
            train, test = read_cremad(tmp_path, fold=fold, size=16, skip_missing=True)
            seen, unseen = ({part.groups[c.group] for c in part.clips} for part in (train, test))
            assert not seen & unseen
            assert len(seen | unseen) == 7
            tested += [clip.name for clip in test.clips]
        assert len(tested) == len(set(tested)) == 14
        first = test.clips[0]
        assert (first.name, test.classes[first.label], test.groups[first.group]) == (
            f"{tmp_path.name}/VideoFlash/1005_IEO_HAP_LO.flv",
            "happy",
            "1005",
        )
        assert brightness(test.frames(0)) == [0, 1, 2]

    def test_known_damaged_clips_are_named_and_left_out_on_request(self, tmp_path):
        self.make(tmp_path, BROKEN)
        with pytest.raises(HDFError, match=r"with --skip broken.* 4 known ones: 1064_IEO_DIS_MD"):
            read_cremad(tmp_path, skip_missing=True)
        train, test = read_cremad(tmp_path, skip_missing=True, skip_broken=True)
        assert len(train.clips) + len(test.clips) == 14
        assert len(train.left_out) == 4
        repaired = read_cremad(tmp_path, skip_missing=True, broken=())
        assert sum(len(part.clips) for part in repaired) == 18

    @pytest.mark.parametrize(
        ("options", "names", "message"),
        [
            ({}, (), "root: download .*expected 7442 videos, found 14 in .*VideoFlash"),
            ({"fold": 6}, (), r"1 <= fold <= folds, at least 2 folds, found \(6, 5\)"),
            ({"skip_missing": True}, ("1001_JOY",), "names like .*, found 1001_JOY.flv in .*Flash"),
            ({"fold": 40, "folds": 40, "skip_missing": True}, (), "actors for 40 folds"),
        ],
    )
    def test_bad_input_is_named(self, tmp_path, options, names, message):
        with pytest.raises(HDFError, match=message):
            read_cremad(self.make(tmp_path, names), **options)

    def test_a_missing_folder_is_named(self, tmp_path):
        with pytest.raises(HDFError, match="a folder with VideoFlash, found none in"):
            read_cremad(tmp_path)
