"""From files to frames: videos by PyAV, folders of images by Pillow."""

from __future__ import annotations

import re
from pathlib import Path

import av
import numpy as np
from PIL import Image, UnidentifiedImageError

from examples.train.data.clips import Frames, Pick, every_frame
from hdf_modules import HDFError

# left, top, right, bottom in pixels; right and bottom are the first that lie outside
Region = tuple[int, int, int, int]

VIDEOS = (".mp4", ".avi", ".flv", ".mkv", ".mov", ".webm")
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def read_frames(
    path: Path,
    size: int,
    pick: Pick = every_frame,
    window: tuple[int, int] | None = None,
    region: Region | None = None,
) -> Frames:
    """Read frames of a video or of a folder of images.

    Args:
        path: video file or folder.
        size: side of the result.
        pick: which frames, given their number.
        window: first and last frame (inclusive) of the clip inside the file; all by default.
        region: the part of every frame to scale to the result, where the face is; by default the
            largest square around the centre.

    Raises:
        HDFError: naming the file, if it is missing, empty, corrupt, or does not hold the window or
            the region.
    """
    if not path.exists():
        raise HDFError("path", "an existing video or folder of images", str(path))
    read = _read_folder if path.is_dir() else _read_video
    images = read(path, pick, window)
    return np.stack([_fit(image, size, _box(path, image, region)) for image in images])


def images_in(folder: Path) -> list[Path]:
    """The images of a folder in numeric order, so that 10.jpg follows 9.jpg."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in IMAGES]
    return sorted(found, key=lambda path: [int(n) for n in re.findall(r"\d+", path.stem)] or [0])


def _positions(path: Path, available: int, pick: Pick, window: tuple[int, int] | None) -> list[int]:
    first, last = window or (0, available - 1)
    if not 0 <= first <= last < available:
        wanted = f"at least {last + 1} frames" if window else "at least one frame"
        raise HDFError("path", wanted, f"{available} in {path}")
    return [first + int(i) for i in pick(last - first + 1)]


def _read_folder(path: Path, pick: Pick, window: tuple[int, int] | None) -> list[Image.Image]:
    files = images_in(path)
    return [_open(files[i]) for i in _positions(path, len(files), pick, window)]


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path).convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise HDFError("path", "a readable image", str(path), str(error)) from error


def _read_video(path: Path, pick: Pick, window: tuple[int, int] | None) -> list[Image.Image]:
    try:
        wanted = _positions(path, _count(path), pick, window)
        frames = _decode(path, set(wanted))
    except av.FFmpegError as error:
        raise HDFError("path", "a readable video", str(path), str(error)) from error
    missing = sorted(set(wanted) - set(frames))
    if missing:
        raise HDFError("path", "frames that decode", f"{path}: frame {missing[0]} does not")
    return [frames[i] for i in wanted]


def _count(path: Path) -> int:
    """Count the packets: headers are wrong or silent in FLV and in cut files."""
    with av.open(str(path)) as container:
        if not container.streams.video:
            return 0
        return sum(packet.size > 0 for packet in container.demux(video=0))


def _decode(path: Path, wanted: set[int]) -> dict[int, Image.Image]:
    """Decode from the start: a seek lands on a different frame from one container to the next."""
    frames: dict[int, Image.Image] = {}
    with av.open(str(path)) as container:
        for position, frame in enumerate(container.decode(video=0)):
            if position in wanted:
                frames[position] = frame.to_image()
            if position >= max(wanted):
                break
    return frames


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
