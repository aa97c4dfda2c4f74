"""Folders and videos whose frames tell their number."""

from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from PIL import Image


def write_folder(folder: Path, frames: int, size=(24, 20), suffix="jpg") -> Path:
    """Frames whose brightness is ten times their number."""
    folder.mkdir(parents=True)
    for i in range(frames):
        Image.new("RGB", size, (10 * i,) * 3).save(folder / f"{i}.{suffix}", quality=95)
    return folder


def write_video(
    path: Path, frames: int, codec: str = "libx264", size=(32, 24), **more: Any
) -> Path:
    """A video whose brightness is ten times the frame number."""
    return film(path, (Image.new("RGB", size, (10 * i,) * 3) for i in range(frames)), codec, **more)


def film(
    path: Path,
    pictures: Iterable[Image.Image],
    codec: str = "libx264",
    *,
    shape: Callable[[Any], None] = lambda stream: None,
    times: list[int] | None = None,
    **options: str,
) -> Path:
    """A video of pictures.

    Args:
        path: the file.
        pictures: of one size.
        codec: an encoder of FFmpeg.
        shape: changes the stream before it is written to.
        times: when each picture is shown, in 1/25 second; one after the other by default.
        options: of the encoder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(f"file:{path}", "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.pix_fmt = "yuv420p"
        shape(stream)
        for i, picture in enumerate(pictures):
            if i == 0:
                stream.width, stream.height = picture.size
            frame = av.VideoFrame.from_image(picture)
            if times:
                frame.pts, frame.time_base = times[i], Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def copy(
    source: Path,
    target: Path,
    first: int = 0,
    at: int = 0,
    change: dict[int, Callable[[Any], None]] | None = None,
    **options: str,
) -> Path:
    """The same packets in another file, as ``ffmpeg -c copy`` does.

    Args:
        source: a video.
        target: the file to write.
        first: packets before this one are left out.
        at: the frame that is shown at zero; those before it have times below zero.
        change: what is done to packets, by their number.
        options: of the container.
    """
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux(video=0) if packet.size]
        start = sorted(packet.pts for packet in packets)[at]
        for i, packet in enumerate(packets[first:]):
            (change or {}).get(i, lambda packet: None)(packet)
            packet.pts, packet.dts = packet.pts - start, packet.dts - start
            packet.stream = stream
            new.mux(packet)
    return target
