"""Videos and folders as people have them: read as a player shows them, beside a plain decode."""

import contextlib
import gc
import io
import multiprocessing
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from examples.train.data.clips import every_frame
from examples.train.data.cremad import read_cremad
from examples.train.data.video import read_frames
from hdf_modules import HDFError
from tests.support.clips import copy, film, write_folder, write_video

SIDE = 64  # of videos and of what is read, so that nothing is scaled
SQUARE = (SIDE, SIDE)
FEW = {"g": "10", "bf": "2", "sc_threshold": "0"}  # a key frame every ten


def plain(path: Path) -> np.ndarray:
    """Every frame that FFmpeg decodes by itself, past packets that it refuses."""
    frames = []
    with av.open(f"file:{path}") as container:
        for packet in container.demux(video=0):
            with contextlib.suppress(av.FFmpegError):
                frames += [frame.to_ndarray(format="rgb24") for frame in packet.decode()]
    return np.stack(frames)


def numbers(frames: np.ndarray) -> list[int]:
    return [round(float(frame.mean()) / 10) for frame in frames]


def quarters(size: tuple[int, int] = SQUARE) -> Image.Image:
    colours = [[(255, 0, 0), (0, 0, 255)], [(0, 0, 0), (255, 255, 255)]]
    image = Image.fromarray(np.array(colours, np.uint8))
    return image.resize(size, Image.Resampling.NEAREST)


def clear() -> Image.Image:
    """A picture of a palette whose colours are each as transparent as they like."""
    image = Image.fromarray(np.array([[0, 100], [200, 255]], np.uint8)).convert("P")
    image.info["transparency"] = bytes([0, 128, 255])
    return image


def full_range(stream) -> None:
    stream.pix_fmt = "yuvj420p"


def noise(count: int) -> Iterator[Image.Image]:
    generator = np.random.default_rng(0)
    for _ in range(count):
        yield Image.fromarray(generator.integers(0, 256, (SIDE, SIDE, 3), np.uint8))


def seen(frame: np.ndarray) -> str:
    """The quarters of a picture, row by row, by their colours: ``rbkw`` where it is upright."""
    y, x = np.array(frame.shape[:2]) // 4
    initial = {(1, 0, 0): "r", (0, 0, 1): "b", (0, 0, 0): "k", (1, 1, 1): "w"}
    corners = [frame[row, column] for row in (y, 3 * y) for column in (x, 3 * x)]
    return "".join(initial[tuple((corner > 127).astype(int))] for corner in corners)


class TestEveryFrameInItsOrder:
    @pytest.mark.parametrize(
        ("codec", "suffix", "options"),
        [
            ("libx264", "mp4", FEW),
            ("libx265", "mkv", {"x265-params": "log-level=none:bframes=3"}),
            ("libvpx", "webm", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
            ("libvpx-vp9", "webm", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
            ("libsvtav1", "mp4", {"preset": "12", "svtav1-params": "lookahead=8"}),
            ("mpeg4", "avi", {"bf": "2", "g": "9"}),
        ],
    )
    def test_of_every_codec(self, tmp_path, monkeypatch, codec, suffix, options):
        monkeypatch.setenv("SVT_LOG", "1")
        path = write_video(tmp_path / f"v.{suffix}", 20, codec, SQUARE, **options)
        found = read_frames(path, SIDE)
        assert np.array_equal(found, plain(path))
        assert np.abs(np.array(numbers(found)) - np.arange(20)).max() <= 1  # what coding loses
        assert len(found) == 20

    @pytest.mark.parametrize("suffix", ["mp4", "mov"])
    def test_an_edit_list_is_followed(self, tmp_path, suffix):
        whole = write_video(tmp_path / "whole.mp4", 20, size=SQUARE, **FEW)
        cut, asked = copy(whole, tmp_path / f"cut.{suffix}", at=5), []
        found = read_frames(cut, SIDE, lambda n: asked.append(n) or every_frame(n))
        assert numbers(found) == list(range(5, 20))
        assert asked == [15]  # known before decoding, so that it is decoded once
        assert numbers(read_frames(cut, SIDE, window=(1, 2))) == [6, 7]

    @pytest.mark.parametrize(
        ("codec", "suffix"),
        [
            *(("libx264", suffix) for suffix in ("mp4", "mkv", "ts", "flv")),
            ("libvpx", "webm"),
            ("libvpx-vp9", "webm"),
        ],
    )
    def test_a_clip_cut_at_another_than_a_key_frame_begins_at_the_next(
        self, tmp_path, codec, suffix
    ):
        whole = write_video(tmp_path / "whole.mkv", 20, codec, SQUARE, **FEW)
        cut = copy(whole, tmp_path / f"cut.{suffix}", first=4)
        found = read_frames(cut, SIDE)
        assert numbers(found) == list(range(10, 20))
        assert np.array_equal(found, plain(cut))
        middle = read_frames(cut, SIDE, lambda n: np.array([0, n // 2, n - 1]))
        assert numbers(middle) == [10, 15, 19]  # chosen among the frames, not the packets

    @pytest.mark.parametrize("extra", [0, 77])
    def test_a_broadcast_may_start_in_the_middle(self, tmp_path, extra):
        whole = write_video(tmp_path / "whole.ts", 20, size=SQUARE, **FEW)
        path = tmp_path / "middle.ts"
        path.write_bytes(whole.read_bytes()[188 * 13 + extra :])
        found = read_frames(path, SIDE)
        assert numbers(found) == list(range(10, 20))
        assert np.array_equal(found, plain(path))

    @pytest.mark.parametrize("suffix", ["mp4", "mkv"])
    def test_frames_of_various_lengths_count_once_each(self, tmp_path, suffix):
        times = [0, 1, 2, 10, 11, 30, 31, 90]
        path = write_video(tmp_path / f"v.{suffix}", 8, size=SQUARE, times=times)
        assert numbers(read_frames(path, SIDE)) == list(range(8))

    def test_interlaced_frames_are_read_with_both_fields(self, tmp_path):
        options = {"flags": "+ilme+ildct", "x264-params": "tff=1"}
        path = write_video(tmp_path / "v.mp4", 8, size=SQUARE, **options)
        with av.open(str(path)) as container:
            assert all(frame.interlaced_frame for frame in container.decode(video=0))
        found = read_frames(path, SIDE)
        assert numbers(found) == list(range(8))
        assert np.array_equal(found, plain(path))

    @pytest.mark.parametrize(("suffix", "frames"), [("mp4", 8), ("mkv", 8), ("mp4", 1)])
    def test_a_cover_picture_is_not_the_film(self, tmp_path, suffix, frames):
        path = tmp_path / f"v.{suffix}"
        with av.open(str(path), "w") as container:
            cover, film = (container.add_stream(name, rate=25) for name in ("mjpeg", "libx264"))
            for stream, form in ((cover, "yuvj420p"), (film, "yuv420p")):
                stream.width, stream.height, stream.pix_fmt = *SQUARE, form
            cover.disposition = Disposition.attached_pic
            white = av.VideoFrame.from_image(Image.new("RGB", SQUARE, "white"))
            container.mux([*cover.encode(white), *cover.encode()])
            for i in range(frames):
                image = Image.new("RGB", SQUARE, (10 * i,) * 3)
                container.mux(film.encode(av.VideoFrame.from_image(image)))
            container.mux(film.encode())
        assert numbers(read_frames(path, SIDE)) == list(range(frames))


class TestUpright:
    @pytest.mark.parametrize("suffix", ["mp4", "mkv"])
    @pytest.mark.parametrize(
        ("degrees", "mirrored", "expected"),
        [
            (0, False, "rbkw"),
            (90, False, "bwrk"),
            (180, False, "wkbr"),
            (270, False, "krwb"),
            (0, True, "brwk"),
            (90, True, "wbkr"),
            (180, True, "kwrb"),
            (270, True, "rkbw"),
        ],
    )
    def test_videos_are_turned_as_their_container_says(
        self, tmp_path, suffix, degrees, mirrored, expected
    ):
        def turn(stream):
            stream.set_display_rotation(degrees, hflip=mirrored)

        path = film(tmp_path / f"v.{suffix}", [quarters((SIDE, SIDE // 2))] * 3, shape=turn)
        long, short = (SIDE, SIDE // 2) if degrees % 180 == 0 else (SIDE // 2, SIDE)
        found = read_frames(path, SIDE, region=(0, 0, long, short))  # all of it, or an error
        assert {seen(frame) for frame in found} == {expected}

    @pytest.mark.parametrize(
        ("orientation", "expected"),
        list(enumerate(("rbkw", "brwk", "wkbr", "kwrb", "rkbw", "krwb", "wbkr", "bwrk"), start=1)),
    )
    def test_images_are_turned_as_the_camera_was_held(self, tmp_path, orientation, expected):
        exif = Image.Exif()
        exif[274] = orientation
        quarters().save(tmp_path / "1.jpg", exif=exif, quality=95)
        assert seen(read_frames(tmp_path, SIDE)[0]) == expected

    @pytest.mark.parametrize(("orientation", "expected"), [(1, "rbkw"), (3, "wkbr"), (6, "krwb")])
    def test_films_of_photographs_are_turned_as_each_of_them_says(
        self, tmp_path, orientation, expected
    ):
        """EXIF beside a frame, as of cameras that film in JPEG: PyAV has no name for it."""
        exif, photograph = Image.Exif(), io.BytesIO()
        exif[274] = orientation
        quarters().save(photograph, "jpeg", exif=exif, quality=95)

        def replace(packet):
            packet.update(photograph.getvalue().ljust(packet.size, b"\0"))

        larger = film(tmp_path / "larger.avi", noise(3), "mjpeg", shape=full_range)
        path = copy(larger, tmp_path / "v.avi", change=dict.fromkeys(range(3), replace))
        assert {seen(frame) for frame in read_frames(path, SIDE)} == {expected}

    @pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
    def test_pixels_become_square(self, tmp_path, suffix):
        def widen(stream):
            stream.codec_context.sample_aspect_ratio = Fraction(2, 1)

        pictures = [quarters((SIDE // 2, SIDE))] * 3
        path = film(tmp_path / f"v.{suffix}", pictures, "mpeg4", shape=widen)
        found = read_frames(path, SIDE, region=(0, 0, SIDE, SIDE))
        assert seen(found[0]) == "rbkw"


class TestFolders:
    @pytest.mark.parametrize(
        "picture",
        [
            Image.fromarray(np.array([[0, 25700], [51400, 65535]], np.uint16)),
            Image.fromarray(np.array([[0, 100], [200, 255]], np.uint8)),
            Image.fromarray(np.array([[0, 100], [200, 255]], np.uint8)).convert("P"),
            Image.fromarray(np.array([[0, 100], [200, 255]], np.uint8)).convert("RGBA"),
            clear(),
        ],
        ids=["16 bits", "grey", "palette", "alpha", "palette with alpha"],
    )
    def test_every_kind_of_png_keeps_its_brightness(self, tmp_path, picture):
        picture.save(tmp_path / "1.png")
        (frame,) = read_frames(tmp_path, 2)
        assert frame[..., 0].tolist() == [[0, 100], [200, 255]]
        assert (frame == frame[..., :1]).all()

    @pytest.mark.parametrize("suffix", ["webp", "gif"])
    def test_an_animation_is_a_clip(self, tmp_path, suffix):
        first, *more = (Image.new("RGB", SQUARE, (10 * i,) * 3) for i in range(6))
        path = tmp_path / f"v.{suffix}"
        first.save(path, save_all=True, append_images=more, duration=40)
        assert numbers(read_frames(path, SIDE)) == list(range(6))
        assert numbers(read_frames(path, SIDE, window=(1, 3))) == [1, 2, 3]
        with pytest.raises(HDFError, match="at least 9 frames, found 6"):
            read_frames(path, SIDE, window=(1, 8))

    def test_a_photograph_is_a_clip_of_one_frame(self, tmp_path):
        """Phones put a map of its brightness behind it, as a second picture."""
        exif = Image.Exif()
        exif[274] = 2
        path, clear = tmp_path / "1.jpg", Image.new("RGB", SQUARE)
        quarters().save(path, "MPO", save_all=True, append_images=[clear], exif=exif, quality=95)
        (frame,) = read_frames(path, SIDE)
        assert seen(frame) == "brwk"

    def test_whatever_is_wrong_with_an_image_names_it(self, tmp_path):
        """Pillow has errors of its own for what its formats do not agree on: here, a size."""
        Image.new("RGB", SQUARE).save(tmp_path / "1.bmp")
        content = bytearray((tmp_path / "1.bmp").read_bytes())
        content[18:22] = (2**30).to_bytes(4, "little")
        (tmp_path / "1.bmp").write_bytes(content)
        with pytest.raises(HDFError, match=r"a readable image, found .*1\.bmp"):
            read_frames(tmp_path, SIDE)

    def test_what_macos_leaves_beside_the_files_is_passed_over(self, tmp_path):
        write_folder(tmp_path / "clip", 3)
        for i in range(3):
            (tmp_path / f"clip/._{i}.jpg").write_bytes(b"\0\5\x16\7")
        assert numbers(read_frames(tmp_path / "clip", 16)) == [0, 1, 2]
        for actor in (1001, 1002):
            write_video(tmp_path / f"VideoFlash/{actor}_IEO_HAP_LO.flv", 3, "flv")
            (tmp_path / f"VideoFlash/._{actor}_IEO_HAP_LO.flv").write_bytes(b"\0\5\x16\7")
        parts = read_cremad(tmp_path, folds=2, skip_missing=True)
        assert [len(part.clips) for part in parts] == [1, 1]


class TestFiles:
    @pytest.mark.parametrize("name", ["12:30.mp4", "concat:a|b.mp4", "%03d.mp4", "笑 😀.mp4"])
    def test_a_name_is_a_file_whatever_it_looks_like(self, tmp_path, monkeypatch, name):
        monkeypatch.chdir(tmp_path)
        write_video(Path(name), 3, size=SQUARE)
        assert numbers(read_frames(Path(name), SIDE)) == [0, 1, 2]

    @pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "flv"])
    def test_a_title_may_be_in_any_encoding(self, tmp_path, suffix):
        def name(stream):
            stream.container.metadata["title"] = "@@@@"

        codec = "flv" if suffix == "flv" else "mpeg4"
        path = film(tmp_path / f"v.{suffix}", [quarters()] * 3, codec, shape=name)
        content = path.read_bytes()
        assert b"@@@@" in content
        path.write_bytes(content.replace(b"@@@@", "高兴".encode("gbk")))
        assert len(read_frames(path, SIDE)) == 3

    @pytest.mark.parametrize(
        ("suffix", "codec", "share", "first"),
        [
            ("mkv", "libx264", 0.8, 10),
            ("webm", "libvpx", 0.6, 5),
            ("avi", "mpeg4", 0.9, 10),
            ("flv", "flv", 0.5, 5),
            ("mp4", "libx264", 0.95, 10),
        ],
    )
    def test_of_a_broken_off_file_there_are_the_frames_so_far(
        self, tmp_path, suffix, codec, share, first
    ):
        whole = write_video(tmp_path / f"whole.{suffix}", 24, codec, SQUARE, g="4", bf="0")
        if suffix == "mp4":  # the table of frames in front, as files for the web have it
            whole = copy(whole, tmp_path / "front.mp4", movflags="faststart")
        expected = plain(whole)
        content = whole.read_bytes()
        path = tmp_path / f"cut.{suffix}"
        path.write_bytes(content[: int(share * len(content))])
        with pytest.warns(UserWarning, match=rf"cut\.{suffix} .*breaks off, \d+ frames") as told:
            found = read_frames(path, SIDE)
        assert len(told) == 1
        assert first <= len(found) < 24
        assert np.array_equal(found[:first], expected[:first])

    @pytest.mark.parametrize(
        ("suffix", "movflags"),
        [("mp4", "faststart"), ("mp4", "frag_every_frame+empty_moov+delay_moov"), ("avi", "")],
    )
    def test_a_file_that_lacks_its_very_end_is_told(self, tmp_path, suffix, movflags):
        """Too little for the header to tell, and decoders show a part of a picture in silence."""
        whole = film(tmp_path / "whole.mov", noise(24), "mjpeg", shape=full_range)
        cut = copy(
            whole, tmp_path / f"cut.{suffix}", **({"movflags": movflags} if movflags else {})
        )
        packets = len(plain(cut))
        content = cut.read_bytes()
        end = content.rindex(b"\xff\xd9") - 300  # of the last picture
        cut.write_bytes(content[:end])
        with pytest.warns(
            UserWarning, match=rf"cut\.{suffix} .*breaks off, {packets} frames"
        ) as told:
            read_frames(cut, SIDE)
        assert len(told) == 1

    @pytest.mark.parametrize(("kept", "frames"), [(0, 19), (0.5, 20)])
    def test_a_damaged_packet_is_told_once(self, tmp_path, kept, frames):
        """One that does not decode is passed over; one that decodes in part is shown."""

        def damage(packet):
            start = int(kept * packet.size)
            packet.update(bytes(packet)[:start] + (packet.size - start) * b"\x55")

        whole = film(tmp_path / "whole.mkv", noise(20), g="1")
        path = copy(whole, tmp_path / "hurt.mkv", change={7: damage})
        with pytest.warns(UserWarning, match=rf"hurt\.mkv is damaged .* {frames} frames") as told:
            found = read_frames(path, SIDE, lambda n: np.array([6, 8, n - 1]))
        assert len(told) == 1
        assert np.array_equal(found, plain(whole)[[6, 8 if frames == 20 else 9, 19]])

    def test_a_lost_packet_of_a_broadcast_is_told_once(self, tmp_path):
        path = film(tmp_path / "hurt.ts", noise(20), "mpeg2video", g="10", bf="0")
        content = path.read_bytes()
        middle = len(content) // 188 // 2 * 188
        path.write_bytes(content[:middle] + content[middle + 188 :])
        with pytest.warns(UserWarning, match=r"hurt\.ts is damaged") as told:
            found = read_frames(path, SIDE)
        assert len(told) == 1
        assert np.array_equal(found, plain(path))

    def test_what_was_read_does_not_hold_up_a_forked_process(self, tmp_path):
        """It frees what it inherited, as the collector does in a worker of a loader."""
        write_video(tmp_path / "a.mp4", 5)
        gc.collect()
        gc.disable()
        try:
            read_frames(tmp_path / "a.mp4", SIDE)
            child = multiprocessing.get_context("fork").Process(target=gc.collect)
            child.start()
            child.join(20)
            ended = child.exitcode
            child.kill()
        finally:
            gc.enable()
        assert ended == 0

    def test_a_file_of_which_nothing_decodes_is_named(self, tmp_path):
        whole = write_video(tmp_path / "whole.mkv", 24, size=SQUARE)
        path = tmp_path / "cut.mkv"
        path.write_bytes(whole.read_bytes()[:700])
        with pytest.raises(HDFError, match=r"path: expected .*cut\.mkv"):
            read_frames(path, SIDE)

    @pytest.mark.parametrize("pick", [every_frame, lambda n: np.array([3, n - 1])])
    def test_only_what_is_sampled_is_kept(self, tmp_path, monkeypatch, pick):
        path = write_video(tmp_path / "v.mp4", 24, size=(320, 240), bf="0")
        alive, scale = [], Image.Image.resize

        def count(image, *args, **kwargs):
            large = (o for o in gc.get_objects() if type(o) in (av.VideoFrame, Image.Image))
            alive.append(sum(o.width == 320 for o in large))
            return scale(image, *args, **kwargs)

        gc.collect()
        monkeypatch.setattr(Image.Image, "resize", count)
        read_frames(path, 16, pick)
        assert len(alive) == len(pick(24))
        assert max(alive) <= 4  # the frame, its picture, and those that the decoder is at
