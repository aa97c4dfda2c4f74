"""From files to frames: videos by PyAV, images and folders of them by Pillow.

Frames are those that a player shows: each once, in its order, upright and with square pixels. Of a
file that breaks off there are the frames so far, with a warning. Interlaced frames stay as they are
coded, both fields in one.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from examples.train.data.clips import Frames, Pick, every_frame
from examples.train.data.decoding import packets_to_show, shown
from hdf_modules import HDFError

# left, top, right, bottom in pixels; right and bottom are the first that lie outside
Region = tuple[int, int, int, int]
Fit = Callable[[Image.Image], Frames]
Window = tuple[int, int] | None
Watch = Callable[[Iterable[Any], int], Iterable[Any]]

VIDEOS = (".mp4", ".avi", ".flv", ".mkv", ".mov", ".webm")
IMAGES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def read_frames(
    path: Path,
    size: int,
    pick: Pick = every_frame,
    window: Window = None,
    region: Region | None = None,
    *,
    watch: Watch = lambda frames, total: frames,
) -> Frames:
    """Read frames of a video or of a folder of images. Only those that are picked are kept.

    Args:
        path: video file or folder.
        size: side of the result.
        pick: which frames, given their number; asked again if the packets promised another number.
        window: first and last frame (inclusive) of the clip inside the file; all by default.
        region: the part of every frame to scale to the result, where the face is; by default the
            largest square around the centre.
        watch: passes on what it is given, that many: shows how far reading is.

    Raises:
        HDFError: naming the file, if it is missing, empty, unreadable, or does not hold the window
            or the region.
    """
    if not path.exists():
        raise HDFError("path", "an existing video or folder of images", str(path))

    def fit(image: Image.Image) -> Frames:
        return _fit(image, size, _box(path, image, region))

    read = _read_folder if path.is_dir() else _read_image if _is_image(path) else _read_video
    return np.stack(read(path, pick, window, fit, watch))


def is_there(path: Path) -> bool:
    """Whether there is a file, or a folder with an image in it."""
    return any(map(_is_image, path.iterdir())) if path.is_dir() else path.exists()


def is_hidden(path: Path) -> bool:
    """Whether the name starts with a dot: macOS leaves a ``._1.jpg`` beside each 1.jpg."""
    return path.name.startswith(".")


def images_in(folder: Path) -> list[Path]:
    """The images of a folder in numeric order, so that 10.jpg follows 9.jpg."""

    def order(path: Path) -> tuple[list[int], str]:
        return [int(n) for n in re.findall(r"\d+", path.stem)] or [0], path.name

    return sorted(filter(_is_image, folder.iterdir()), key=order)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGES and not is_hidden(path)


def _positions(path: Path, available: int, pick: Pick, window: Window) -> list[int]:
    first, last = window or (0, available - 1)
    if not 0 <= first <= last < available:
        wanted = f"at least {last + 1} frames" if window else "at least one frame"
        raise HDFError("path", wanted, f"{available} in {path}")
    return [first + int(i) for i in pick(last - first + 1)]


def _read_folder(path: Path, pick: Pick, window: Window, fit: Fit, watch: Watch) -> list[Frames]:
    files = images_in(path)
    wanted = _positions(path, len(files), pick, window)
    return [fit(_open(files[i])) for i in watch(wanted, len(wanted))]


def _read_image(path: Path, pick: Pick, window: Window, fit: Fit, watch: Watch) -> list[Frames]:
    """A photograph, or an animation: FFmpeg reads none of WebP."""
    with _opened(path) as file:
        moving = file.format != "MPO"  # whose other pictures are of another camera, or a map
        wanted = _positions(path, getattr(file, "n_frames", 1) if moving else 1, pick, window)
        kept, moments = {}, sorted(set(wanted))
        for i in watch(moments, len(moments)):
            file.seek(i)
            kept[i] = fit(_upright(file))
    return [kept[i] for i in wanted]


def _open(path: Path) -> Image.Image:
    with _opened(path) as file:
        return _upright(file)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as file:
            yield file
    except HDFError:
        raise
    except Exception as error:  # of any kind: each format of Pillow has its own
        hint = "pass --skip broken, or fetch it again"
        raise HDFError("path", "a readable image", f"{path}: {error}", hint) from error


def _upright(file: Image.Image) -> Image.Image:
    """An image in three colours of eight bits, turned as its camera was held."""
    image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I"):  # 16 bits, which convert() would cut off at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P":  # Pillow warns of a palette that loses its transparency at once
        image = image.convert("RGBA")
    return image.convert("RGB")


def _read_video(path: Path, pick: Pick, window: Window, fit: Fit, watch: Watch) -> list[Frames]:
    """Decode to the end and count; once more where there were not as many frames as packets."""
    expected = window[1] + 1 if window else packets_to_show(path)
    while True:
        wanted = _positions(path, expected, pick, window)
        damage: list[str] = []
        pictures = watch(shown(path, damage), expected)
        kept, found = _keep(pictures, set(wanted), expected if window else None, fit)
        if found == expected:
            break
        expected = found
    if damage:
        text = f"{path} is damaged or breaks off, {found} frames of it are read: {damage[0]}"
        warnings.warn(text, stacklevel=3)
    return [kept[i] for i in wanted]


def _keep(
    pictures: Iterable[Callable[[], Image.Image]], wanted: set[int], stop: int | None, fit: Fit
) -> tuple[dict[int, Frames], int]:
    """The wanted frames and how many there are, at most ``stop``.

    From the start: a seek lands on a different frame from one container to the next.
    """
    kept, found = {}, 0
    for picture in islice(pictures, stop):
        if found in wanted:
            kept[found] = fit(picture())
        found += 1
    return kept, found


def _box(path: Path, image: Image.Image, region: Region | None) -> Region:
    """The region, which has to lie inside the image; the central square by default."""
    if region is None:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        return left, top, left + side, top + side
    left, top, right, bottom = region
    if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
        inside = f"left, top, right, bottom inside {image.width}×{image.height} pixels"
        raise HDFError("region", inside, f"{region} for {path}")
    return region


def _fit(image: Image.Image, size: int, box: Region) -> Frames:
    """Scale the box to a square."""
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box, reducing_gap=2.0))
