"""The frames of a video file as a player shows them, by PyAV."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from PIL import Image

from hdf_modules import HDFError

Axes = tuple[tuple[int, int], tuple[int, int]]
UPRIGHT: Axes = ((1, 0), (0, 1))
# By the quarters of a turn against the clock.
_TURNED: tuple[Axes, ...] = (UPRIGHT, ((0, -1), (1, 0)), ((-1, 0), (0, -1)), ((0, 1), (-1, 0)))
# Containers whose header says how long they are; of others FFmpeg gives an estimate.
_STATED = ("matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2", "flv", "avi")


def shown(path: Path, damage: list[str]) -> Iterator[Callable[[], Image.Image]]:
    """Pass over the frames; each is a function that makes its picture, to be called or not.

    FFmpeg itself follows edit lists and leaves out frames that refer to what is not there.

    Args:
        path: the file.
        damage: gets what is wrong with it, where it opens and frames come out of it.

    Raises:
        HDFError: if it does not open, or nothing in it decodes.
    """
    with _opened(path) as container:
        film = _film(container)
        begun, refused, look = film is None, "", (1.0, UPRIGHT)
        packets = (p for p in _packets(container, damage) if p.stream is film and p.size)
        for packet in chain(packets, [None]) if film else ():  # None: the frames held back
            try:
                frames = film.decode(packet)
            except av.FFmpegError as error:  # players pass over it
                refused = str(error)
                damage.extend([refused] if begun else [])  # before the first frame: a cut
                continue
            if frames and not begun:
                begun, look = True, (float(film.sample_aspect_ratio or 1), _axes(frames[0]))
            if begun and packet and packet.is_corrupt:  # part of one: decoders show what there is
                damage.append("a packet is cut off")
            damage.extend("a corrupt frame" for frame in frames if frame.is_corrupt)
            yield from (partial(_picture, frame, *look) for frame in frames)
        if refused and not begun:
            hint = "pass --skip broken, or fetch it again"
            raise HDFError("path", "a readable video", f"{path}: {refused}", hint)


def packets_to_show(path: Path) -> int:
    """How many packets there are to be shown: in most files as many as frames.

    They are counted, for headers are wrong or silent in FLV and in cut files.
    """
    with _opened(path) as container:
        film, packets = _film(container), _packets(container, [])
        return sum(p.stream is film and p.size > 0 and not p.is_discard for p in packets)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        # 12:30.mp4 alone would be a protocol; titles are written in every encoding
        with av.open(f"file:{path}", metadata_errors="replace") as container:
            yield container
    except av.FFmpegError as error:
        hint = "pass --skip broken, or fetch it again"
        raise HDFError("path", "a readable video", f"{path}: {error}", hint) from error


def _film(container: Any) -> Any:
    """The stream that a player chooses, unless it is a single picture beside a film."""
    best, streams = container.streams.best("video"), container.streams.video
    cover = Disposition.attached_pic
    films = [stream for stream in streams if stream.frames != 1 and not stream.disposition & cover]
    return best if best in films or not films else films[0]


def _packets(container: Any, damage: list[str]) -> Iterator[Any]:
    """The packets of all streams, to the end or to where the file breaks off."""
    end = 0.0
    try:
        for packet in container.demux():
            start = packet.dts if packet.pts is None else packet.pts
            if start is not None and packet.size:
                end = max(end, float((start + (packet.duration or 0)) * packet.time_base))
            yield packet
    except av.FFmpegError as error:
        damage.append(str(error))
    if container.duration and container.format.name in _STATED:
        stated = container.duration / av.time_base
        if end < stated - min(max(0.2, stated / 10), 1):  # writers round, by a frame or two
            damage.append(f"its header says {stated:.1f} seconds, there are {end:.1f}")


def _axes(frame: Any) -> Axes:
    """The directions in which x and y of the frame are shown (FFmpeg, libavutil/display.h).

    Asked of the first frame alone: one whose side data was looked at is part of a cycle and stays
    in memory until the next collection.
    """
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # beside EXIF or the views of spatial video, which PyAV has no names for
        return _TURNED[round(frame.rotation / 90) % 4]
    if data is None:
        return UPRIGHT
    ((a, b, _), (c, d, _), _) = np.frombuffer(data, np.int32).reshape(3, 3).tolist()
    return (a, b), (c, d)


def _picture(frame: Any, pixel: float, axes: Axes) -> Image.Image:
    """The frame with square pixels, turned and mirrored as it is shown."""
    # Threads that scale die in a fork, and a worker that frees what it inherited waits for them.
    image = frame.to_image(width=max(1, round(frame.width * pixel)), threads=1)
    (a, b), (c, d) = axes
    if abs(b) > abs(a):  # x is shown along y
        image, a, d = image.transpose(Image.Transpose.TRANSPOSE), c, b
    if a < 0:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if d < 0 else image
