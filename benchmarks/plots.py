"""Line plots as SVG, written by hand: a few dozen lines against a plotting library with ten dependencies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

__all__ = ["IMAGES", "line_plot"]

IMAGES = Path(__file__).parent.parent / "docs" / "img"

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 78, 20, 40, 56
COLOURS = ("#1f6f8b", "#d1495b", "#66a182", "#8d6a9f")
Point = tuple[float, float]


def line_plot(
    path: Path,
    title: str,
    x_label: str,
    y_label: str,
    lines: Mapping[str, Sequence[Point]],
    *,
    log_x: bool = False,
    marks: bool = True,
) -> None:
    """Draw `lines` (points in order of x) over one pair of axes; the y axis begins at 0.

    Raises:
        ValueError: there is no point at all.
    """
    points = [point for line in lines.values() for point in line]
    if not points:
        raise ValueError(f"{title}: nothing to plot")
    xs = sorted({x for x, _ in points})
    x_ticks = xs if log_x else _ticks(0.0, xs[-1])
    y_ticks = _ticks(0.0, max(y for _, y in points))
    place = _Axes(xs[0] if log_x else x_ticks[0], max(xs[-1], x_ticks[-1]), y_ticks[-1], log_x)
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(WIDTH / 2, 20, title, 'text-anchor="middle" font-size="14"'),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, x_label, 'text-anchor="middle"'),
        _text(16, HEIGHT / 2, y_label, f'text-anchor="middle" transform="rotate(-90 16 {HEIGHT / 2:.0f})"'),
    ]
    for tick in y_ticks:
        y = place.y(tick)
        body.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        body.append(_text(LEFT - 6, y + 4, _short(tick), 'text-anchor="end"'))
    body += [
        _text(place.x(tick), HEIGHT - BOTTOM + 18, _short(tick), 'text-anchor="middle"') for tick in x_ticks
    ]
    for number, (name, line) in enumerate(lines.items()):
        body += _line(place, line, name, number, marks)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*body, "</svg>"]) + "\n", "utf-8")


class _Axes:
    """From values to places on the page."""

    def __init__(self, x_low: float, x_high: float, y_high: float, log_x: bool) -> None:
        self._scale = math.log10 if log_x else float
        self._low = self._scale(x_low)
        self._span = (self._scale(x_high) - self._low) or 1.0
        self._y_high = y_high or 1.0

    def x(self, value: float) -> float:
        return LEFT + (self._scale(value) - self._low) / self._span * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - value / self._y_high * (HEIGHT - TOP - BOTTOM)


def _line(place: _Axes, line: Sequence[Point], name: str, number: int, marks: bool) -> list[str]:
    colour = COLOURS[number % len(COLOURS)]
    way = " ".join(f"{place.x(x):.1f},{place.y(y):.1f}" for x, y in line)
    drawn = [f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"/>']
    if marks:
        drawn += [
            f'<circle cx="{place.x(x):.1f}" cy="{place.y(y):.1f}" r="3.5" fill="{colour}"/>' for x, y in line
        ]
    drawn.append(_text(LEFT + 10, TOP + 4 + 16 * number, name, f'fill="{colour}"'))
    return drawn


def _text(x: float, y: float, text: str, more: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(text)}</text>'


def _ticks(low: float, high: float) -> list[float]:
    """Round steps from `low` to at least `high`.

    >>> _ticks(0.0, 7.3)
    [0.0, 2.0, 4.0, 6.0, 8.0]
    """
    span = (high - low) or 1.0
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if span / (step * factor) <= 5)
    return [low + step * n for n in range(math.ceil(span / step - 1e-9) + 1)]


def _short(value: float) -> str:
    """
    >>> _short(1_000_000.0), _short(20_000.0), _short(0.5)
    ('1M', '20k', '0.5')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
