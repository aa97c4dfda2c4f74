"""A face drawn from an identity, its action units and a pose.

Coordinates are the face's own: origin between eyes and nose, x to the viewer's right, y down, half
the height of the face is 1. Everything is a filled polygon, drawn large and averaged down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from examples.train.data.expressions import Units

Points = NDArray[np.float64]
Colour = tuple[float, ...]

_ARC = np.linspace(-1, 1, 17)
_CIRCLE = np.stack(
    [np.cos(np.linspace(0, 2 * np.pi, 24)), np.sin(np.linspace(0, 2 * np.pi, 24))], 1
)
_OUTLINE = np.linspace(0, 2 * np.pi, 48, endpoint=False)
_WHITE: Colour = (244, 240, 236)
_MOUTH: Colour = (74, 22, 26)


@dataclass(frozen=True)
class Identity:
    """What stays the same over a person's clips: geometry in face units, colours in 0..255."""

    skin: Colour
    hair: Colour
    iris: Colour
    clothes: Colour
    width: float
    jaw: float
    eye_spacing: float
    eye_size: float
    brow_weight: float
    brow_height: float
    nose: float
    mouth_width: float
    lips: float
    redness: float
    hair_style: int
    beard: float
    expressiveness: float
    asymmetry: float


_SKINS = ((247, 214, 188), (234, 192, 158), (213, 165, 126), (176, 124, 86), (126, 82, 56))
_HAIRS = ((38, 28, 24), (74, 48, 32), (122, 82, 48), (196, 158, 96), (142, 62, 34), (150, 148, 146))
_IRISES = ((84, 56, 34), (66, 96, 64), (74, 108, 146), (48, 36, 28))


def sample_identity(rng: np.random.Generator) -> Identity:
    """Draw a person."""

    def pick(colours: tuple[Colour, ...]) -> Colour:
        tone = np.array(colours[rng.integers(len(colours))]) * rng.uniform(0.92, 1.06)
        return tuple(np.minimum(tone, 255))

    return Identity(
        skin=pick(_SKINS),
        hair=pick(_HAIRS),
        iris=pick(_IRISES),
        clothes=tuple(rng.uniform(40, 210, 3)),
        width=rng.uniform(0.68, 0.82),
        jaw=rng.uniform(0.12, 0.34),
        eye_spacing=rng.uniform(0.30, 0.36),
        eye_size=rng.uniform(0.9, 1.15),
        brow_weight=rng.uniform(0.7, 1.4),
        brow_height=rng.uniform(-0.36, -0.31),
        nose=rng.uniform(0.85, 1.2),
        mouth_width=rng.uniform(0.23, 0.30),
        lips=rng.uniform(0.7, 1.3),
        redness=rng.uniform(0.15, 0.55),
        hair_style=int(rng.integers(5)),
        beard=float(rng.uniform(0.25, 0.7) * (rng.random() < 0.2)),
        expressiveness=rng.uniform(0.75, 1.1),
        asymmetry=rng.normal(0, 0.08),
    )


@dataclass(frozen=True)
class Pose:
    """Where the head is: shift in image widths, roll in radians, turn in face units, scale."""

    x: float = 0.0
    y: float = 0.0
    roll: float = 0.0
    turn: float = 0.0
    scale: float = 1.0


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """Blend two colours; ``share`` is that of ``b``."""
    return tuple(p + (q - p) * share for p, q in zip(a, b, strict=True))


class _Canvas:
    """Fills polygons given in face coordinates."""

    def __init__(self, size: int, background: Colour, pose: Pose, oversample: int) -> None:
        side = size * oversample
        self.image = Image.new("RGB", (side, side), tuple(int(c) for c in background))
        self._draw = ImageDraw.Draw(self.image)
        unit = 0.45 * side * pose.scale
        cos, sin = np.cos(pose.roll), np.sin(pose.roll)
        self._matrix = unit * np.array([[cos, sin], [-sin, cos]])
        self._origin = side * np.array([0.5 + pose.x, 0.51 + pose.y])
        self._turn = pose.turn

    def fill(self, points: Points, colour: Colour, depth: float = 0.0) -> None:
        """Fill; ``depth`` is how far a feature lies in front of the turning head."""
        shifted = points + np.array([self._turn * depth, 0.0])
        pixels = shifted @ self._matrix + self._origin
        self._draw.polygon(pixels.ravel().tolist(), fill=tuple(int(c) for c in colour))

    def disc(  # noqa: PLR0917 - centre and radii
        self, x: float, y: float, rx: float, ry: float, colour: Colour, depth: float = 0
    ) -> None:
        self.fill(_CIRCLE * (rx, ry) + (x, y), colour, depth)

    def brush(self, points: Points, width: float, colour: Colour, depth: float = 0.0) -> None:
        """Draw a stroke that tapers to its ends."""
        along = np.gradient(points, axis=0)
        normal = np.stack([-along[:, 1], along[:, 0]], 1)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
        taper = 0.5 * width * (1 - 0.75 * np.linspace(-1, 1, len(points))[:, None] ** 4)
        self.fill(
            np.concatenate([points + normal * taper, (points - normal * taper)[::-1]]),
            colour,
            depth,
        )


def draw(
    who: Identity,
    units: Units,
    *,
    size: int = 48,
    pose: Pose | None = None,
    background: Colour = (120, 130, 140),
    occlusion: str | None = None,
) -> Image.Image:
    """Draw one frame.

    Args:
        who: the person.
        units: FACS action unit → intensity in [0, 1]; absent units are at rest.
        size: side of the square image in pixels.
        pose: position of the head.
        background: RGB in 0..255.
        occlusion: ``"glasses"``, ``"shades"``, ``"hand"``, ``"microphone"`` or none.
    """
    oversample = max(3, -(-120 // size))
    canvas = _Canvas(size, background, pose or Pose(), oversample)
    au = {unit: min(1.0, level * who.expressiveness) for unit, level in units.items()}
    get = _Levels(au)
    _shoulders_and_hair(canvas, who)
    _head(canvas, who, get)
    _wrinkles(canvas, who, get)
    _nose(canvas, who, get)
    _mouth(canvas, who, get)
    for side in (-1, 1):
        _eye(canvas, who, get, side)
        _brow(canvas, who, get, side)
    _fringe(canvas, who)
    if occlusion:
        _OCCLUSIONS[occlusion](canvas, who)
    return canvas.image.reduce(oversample)


class _Levels(dict[int, float]):
    """Action units at rest read as zero."""

    def __missing__(self, unit: int) -> float:
        return 0.0


def _outline(who: Identity, drop: float, scale: float = 1.0) -> Points:
    """The head's contour; the jaw narrows it and an open mouth lengthens it."""
    x, y = np.sin(_OUTLINE), -np.cos(_OUTLINE)
    below = np.clip(y, 0, 1)
    x = x * who.width * (1 - who.jaw * below**2) * (1 + 0.04 * np.abs(y) * (1 - np.abs(y)))
    y = y * np.where(y > 0, 1.0, 0.98) + 0.16 * drop * below
    return np.stack([x, y], 1) * scale


def _shoulders_and_hair(canvas: _Canvas, who: Identity) -> None:
    dark = mix(who.hair, (0, 0, 0), 0.25)
    if who.hair_style in (1, 3):
        low = 1.3 if who.hair_style == 1 else 0.75
        angle = np.linspace(-np.pi / 2, np.pi / 2, 25)
        dome = np.stack([(who.width + 0.17) * np.sin(angle), -1.14 * np.cos(angle)], 1)
        ends = np.array([(1.02, low - 0.1), (0.9, low), (-0.9, low), (-1.02, low - 0.1)])
        canvas.fill(np.concatenate([dome, ends * (who.width + 0.17, 1)]), dark)
    if who.hair_style == 4:
        canvas.disc(0, -1.2, 0.3, 0.28, dark)
    shade = mix(who.skin, (60, 20, 10), 0.3)
    canvas.fill(np.array([(-0.3, 0.6), (0.3, 0.6), (0.38, 1.5), (-0.38, 1.5)]), shade)
    canvas.fill(
        np.array(
            [
                (-1.35, 2.2),
                (-1.15, 1.45),
                (-0.36, 1.2),
                (0, 1.4),
                (0.36, 1.2),
                (1.15, 1.45),
                (1.35, 2.2),
            ]
        ),
        who.clothes,
    )


def _head(canvas: _Canvas, who: Identity, au: _Levels) -> None:
    edge = mix(who.skin, (90, 40, 20), 0.22)
    for side in (-1, 1):
        canvas.disc(side * (who.width + 0.01), 0.05, 0.09, 0.17, edge)
    light = mix(who.skin, (255, 246, 236), 0.16)
    steps = 5 if canvas.image.width < 240 else 24
    for step in np.linspace(0, 1, steps):  # nested contours stand in for a shaded ball
        contour = _outline(who, au[26], 1 - 0.34 * step)
        canvas.fill(contour, mix(edge, light, step), depth=0.48 * step)
    if who.beard:
        _beard(canvas, who, au)
    rise = 0.07 * max(au[6], 0.6 * au[12])
    red = mix(who.skin, (214, 92, 84), who.redness * (0.45 + 0.35 * au[6]))
    for side in (-1, 1):
        canvas.disc(side * 0.43, 0.26 - rise, 0.15, 0.105, red, depth=0.4)


def _beard(canvas: _Canvas, who: Identity, au: _Levels) -> None:
    contour = _outline(who, au[26], 0.97)
    jaw = contour[contour[:, 1] > 0.22]
    jaw = jaw[np.argsort(-np.arctan2(jaw[:, 0], jaw[:, 1]))]
    inner = jaw[::-1] * (0.62, 0.30) + (0, 0.16)
    canvas.fill(np.concatenate([jaw, inner]), mix(who.skin, who.hair, who.beard), depth=0.2)


def _wrinkles(canvas: _Canvas, who: Identity, au: _Levels) -> None:
    """Creases are what tells a lowered brow or a wrinkled nose from geometry alone."""
    dark = mix(who.skin, (66, 26, 18), 0.75)

    def crease(points: list[tuple[float, float]], strength: float, width: float = 0.03) -> None:
        if strength > 0.15:
            canvas.brush(
                _smooth(np.array(points)), width, mix(who.skin, dark, min(1, strength)), 0.5
            )

    raised = 0.8 * min(au[1], au[2] + 0.35)
    for y in (-0.6, -0.7):
        crease([(-0.3, y + 0.03), (0, y), (0.3, y + 0.03)], raised)
    for side in (-1, 1):
        crease([(side * 0.05, -0.42), (side * 0.04, -0.28)], 0.9 * au[4], 0.035)
        fold = max(0.9 * au[12], 0.9 * au[9], 0.5 * au[15])
        corner = 0.36 + 0.07 * au[12]
        crease([(side * 0.17, 0.24), (side * corner, 0.36), (side * (corner + 0.02), 0.5)], fold)
        crease([(side * 0.56, -0.1), (side * 0.63, -0.14)], 0.9 * au[6], 0.022)
        crease([(side * 0.56, -0.04), (side * 0.63, -0.03)], 0.9 * au[6], 0.022)
        crease(
            [(side * 0.2, 0.02), (side * 0.34, 0.055), (side * 0.48, 0.02)],
            0.7 * max(au[6], au[7]),
            0.022,
        )
        crease([(side * 0.03, -0.12), (side * 0.13, -0.17)], au[9], 0.03)
        crease([(side * 0.03, -0.04), (side * 0.14, -0.09)], au[9], 0.03)
    crease([(-0.1, 0.76), (0, 0.73), (0.1, 0.76)], 0.6 * max(au[15], au[16]))


def _smooth(points: Points) -> Points:
    """Bend a stroke of two or three points into a short curve."""
    t = np.linspace(0, 1, 7)[:, None]
    if len(points) == 2:
        return points[0] + (points[1] - points[0]) * t
    a, b, c = points
    return (1 - t) ** 2 * a + 2 * t * (1 - t) * (2 * b - 0.5 * (a + c)) + t**2 * c


def _nose(canvas: _Canvas, who: Identity, au: _Levels) -> None:
    lift, wing = 0.06 * au[9], 0.13 * who.nose * (1 + 0.25 * au[9])
    tip = 0.24 * who.nose - lift
    shadow = mix(who.skin, (96, 44, 26), 0.32)
    canvas.fill(
        np.array([(0.02, -0.2), (0.09, tip - 0.05), (wing, tip + 0.03), (0.0, tip + 0.06)]),
        shadow,
        0.7,
    )
    canvas.disc(0, tip, wing * 0.62, 0.075, mix(who.skin, (255, 240, 226), 0.2), 0.9)
    for side in (-1, 1):
        canvas.disc(side * wing * 0.85, tip + 0.02, 0.048, 0.05, mix(who.skin, shadow, 0.5), 0.8)
        canvas.disc(
            side * wing * 0.5, tip + 0.055, 0.034, 0.02, mix(who.skin, (40, 10, 10), 0.7), 0.8
        )


def _eye(canvas: _Canvas, who: Identity, au: _Levels, side: int) -> None:
    half, size = 0.165 * who.eye_size, who.eye_size
    open_ = 1 - au[45]
    squeeze = max(0.55 * au[6], 0.5 * au[7], 0.55 * au[9])
    sag = 0.28 * au[1] * au[15]
    upper = 0.105 * size * max(0.0, 1 + 0.55 * au[5] - 0.55 * squeeze - sag - 0.15 * au[4]) * open_
    lower = 0.065 * size * max(0.1, 1 + 0.35 * au[5] - 1.1 * squeeze) * open_
    tilt = 0.05 * (au[1] * (1 - au[2]) - 0.6 * au[4] * (1 - au[1]))
    x0, y0 = side * who.eye_spacing, -0.1

    def lids(s: Points) -> tuple[Points, Points]:
        arch = np.clip(1 - s**2, 0, 1)
        skew = y0 + tilt * side * s
        return skew - upper * arch**0.7, skew + lower * arch**0.8

    x = x0 + half * _ARC
    top, bottom = lids(_ARC)
    socket = mix(who.skin, (96, 48, 34), 0.22)
    canvas.disc(x0, y0 - 0.02, half * 1.3, 0.15, socket, 0.5)
    white = np.concatenate([np.stack([x, top], 1), np.stack([x, bottom], 1)[::-1]])
    canvas.fill(white, mix(_WHITE, who.skin, 0.08), 0.55)
    for radius, colour in ((0.082 * size, who.iris), (0.045 * size, (16, 12, 12))):
        ring = _CIRCLE * radius + (x0, y0 - 0.015)
        low, high = lids((ring[:, 0] - x0) / half)
        ring[:, 1] = np.clip(ring[:, 1], low, np.maximum(low, high))
        canvas.fill(ring, colour, 0.6)
    if upper > 0.05:
        canvas.disc(x0 + 0.03, y0 - 0.05, 0.018, 0.018, (255, 255, 255), 0.6)
    canvas.brush(np.stack([x, top], 1), 0.042, (38, 22, 20), 0.55)
    canvas.brush(np.stack([x, bottom], 1), 0.016, mix(who.skin, (60, 24, 20), 0.6), 0.55)


def _brow(canvas: _Canvas, who: Identity, au: _Levels, side: int) -> None:
    gain = 1 + side * who.asymmetry
    drop = 0.16 * au[4] * (1 - 0.75 * au[1]) + 0.07 * au[9]
    inner = -0.17 * au[1] + drop
    middle = -0.08 * au[1] - 0.12 * au[2] + 0.75 * drop
    outer = 0.04 * au[1] * (1 - au[2]) - 0.14 * au[2] + 0.1 * drop
    x = who.eye_spacing + np.array([-0.18 - 0.05 * au[4], 0.02, 0.2])
    y = who.brow_height + np.array(
        [0.03 + inner * gain, -0.03 + middle * gain, 0.05 + outer * gain]
    )
    stroke = _smooth(np.stack([side * x, y], 1))
    canvas.brush(stroke, 0.075 * who.brow_weight, mix(who.hair, (20, 12, 10), 0.35), 0.55)


def _mouth(canvas: _Canvas, who: Identity, au: _Levels) -> None:
    round_ = au[26] * (1 - au[20]) * (1 - au[12])
    half = who.mouth_width * (
        1 + 0.38 * au[12] + 0.42 * au[20] - 0.2 * au[23] - 0.28 * round_ + 0.1 * au[16]
    )
    bend = -0.13 * au[12] + 0.12 * au[15] + 0.03 * au[20]
    gap = 0.36 * au[26] + 0.10 * au[25] * (1 - 0.6 * au[26]) + 0.09 * au[16]
    thick = 0.052 * who.lips * (1 - 0.75 * au[23]) * (1 - 0.3 * au[12])
    y0 = 0.5 - 0.5 * bend - 0.05 * au[9] + 0.02 * au[26]
    s, arch = _ARC, np.clip(1 - _ARC**2, 0, 1)
    x = half * s * (1 + who.asymmetry * 0.3 * s)
    line = y0 + bend * np.abs(s) ** 1.8 - 0.5 * bend * arch * (au[12] > au[15])
    top = line - (0.22 * gap + 0.05 * au[9]) * arch ** (0.6 if round_ > 0.3 else 1.0)
    low = line + 0.78 * gap * arch ** (0.6 if round_ > 0.3 else 0.9) + 0.05 * au[16] * arch
    colour = mix(who.skin, (176, 52, 58), 0.42 + 0.25 * who.redness)

    def band(upper: Points, under: Points) -> Points:
        return np.concatenate([np.stack([x, upper], 1), np.stack([x, under], 1)[::-1]])

    bow = thick * arch**0.6 * (1 - 0.25 * np.exp(-((s / 0.22) ** 2)))
    canvas.fill(band(top - bow, low + 1.35 * thick * arch**0.6), colour, 0.6)
    canvas.fill(band(top, low), _MOUTH, 0.6)
    if gap > 0.05:
        canvas.fill(band(top, np.minimum(low, top + 0.075 * arch**0.3)), _WHITE, 0.6)
        if au[16] > 0.3 or au[20] > 0.3:
            canvas.fill(
                band(np.maximum(top, low - 0.05 * arch**0.3), low), mix(_WHITE, _MOUTH, 0.15), 0.6
            )
    if gap <= 0.05:
        canvas.brush(
            np.stack([x, 0.5 * (top + low)], 1), 0.028, mix(colour, (50, 12, 14), 0.75), 0.6
        )


def _fringe(canvas: _Canvas, who: Identity) -> None:
    """Hair in front: the part that a head of hair lays over the forehead."""
    if who.hair_style == 2:
        return
    line = -0.62 if who.hair_style == 3 else -0.74
    contour = _outline(who, 0.0, 1.05)
    cap = contour[contour[:, 1] < (-0.2 if who.hair_style != 4 else -0.45)]
    cap = cap[np.argsort(np.arctan2(cap[:, 0], -cap[:, 1]))]
    part = 0.25 if who.hair_style in (0, 4) else -0.3
    x = np.linspace(cap[-1, 0], cap[0, 0], 15)
    lift = np.exp(-(((x - part) / 0.35) ** 2))
    y = np.maximum(line - 0.1 * lift + 0.35 * np.abs(x / who.width) ** 3, -0.95)
    canvas.fill(np.concatenate([cap * (1.02, 1.06), np.stack([x, y], 1)]), who.hair, 0.15)


def _glasses(canvas: _Canvas, who: Identity, lens: Colour | None = None) -> None:
    angle = np.linspace(0, 2 * np.pi, 25)
    ring = np.stack([0.23 * np.cos(angle), 0.19 * np.sin(angle)], 1)
    for side in (-1, 1):
        centre = np.array([side * who.eye_spacing, -0.09])
        if lens:
            canvas.fill(ring + centre, lens, 0.7)
        for start in (0, 12):  # two halves: a closed stroke would taper at one point only
            canvas.brush((ring + centre)[start : start + 13], 0.04, (30, 28, 32), 0.7)
    canvas.brush(np.array([(-0.1, -0.1), (0, -0.12), (0.1, -0.1)]), 0.04, (30, 28, 32), 0.75)


def _shades(canvas: _Canvas, who: Identity) -> None:
    _glasses(canvas, who, (44, 42, 50))


def _hand(canvas: _Canvas, who: Identity) -> None:
    tone = mix(who.skin, (120, 60, 40), 0.15)
    canvas.disc(0.62, 0.95, 0.36, 0.3, tone, 0.8)
    for i in range(4):
        x = 0.38 + 0.13 * i
        finger = _smooth(np.array([(x + 0.08, 0.95), (x, 0.6), (x - 0.06, 0.4 + 0.03 * i)]))
        canvas.brush(finger, 0.15, mix(tone, (90, 40, 25), 0.07 * i), 0.8)


def _microphone(canvas: _Canvas, who: Identity) -> None:
    canvas.fill(
        np.array([(-0.5, 1.5), (-0.3, 1.5), (-0.16, 0.9), (-0.28, 0.88)]), (38, 38, 42), 0.9
    )
    canvas.disc(-0.2, 0.82, 0.19, 0.19, (62, 62, 68), 0.9)


_OCCLUSIONS = {"glasses": _glasses, "shades": _shades, "hand": _hand, "microphone": _microphone}
OCCLUSIONS = tuple(_OCCLUSIONS)
