"""Folders and videos whose frames tell their number."""

from pathlib import Path

import av
from PIL import Image


def write_folder(folder: Path, frames: int, size=(24, 20), suffix="jpg") -> Path:
    """Frames whose brightness is ten times their number."""
    folder.mkdir(parents=True)
    for i in range(frames):
        Image.new("RGB", size, (10 * i,) * 3).save(folder / f"{i}.{suffix}", quality=95)
    return folder


def write_video(path: Path, frames: int, codec: str = "libx264", size=(32, 24)) -> Path:
    """A video whose brightness is ten times the frame number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i in range(frames):
            image = Image.new("RGB", size, (10 * i,) * 3)
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return path
