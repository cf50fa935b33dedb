"""Small plots as inline SVG: no script, no address outside the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["COLOURS", "bars", "lines"]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8a5a00", "#555555")
"""Told apart with colour-blind eyes too (Okabe and Ito); lines beyond them are dashed."""
WIDTH, HEIGHT = 760, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 36, 14, 40
WIDEST_BAR = 0.06


def lines(series: Mapping[str, Sequence[tuple[float, float]]], x_title: str, y_title: str) -> str:
    """One line for each name through its points (x, y); y from 0."""
    points = [point for found in series.values() for point in found]
    if not points:
        return "<p>Nothing to plot.</p>"
    most_x, most_y = max(x for x, _ in points) or 1.0, max(y for _, y in points) or 1.0
    parts = [_axes(most_x, most_y, x_title, y_title)]
    for place, (name, found) in enumerate(series.items()):
        path = " ".join(f"{_x(x / most_x):.1f},{_y(y / most_y):.1f}" for x, y in found)
        dash = ' stroke-dasharray="6 3"' if place >= len(COLOURS) else ""
        colour = COLOURS[place % len(COLOURS)]
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="1.8"{dash} points="{path}">'
            f"<title>{escape(name)}</title></polyline>"
        )
    return _svg(parts, HEIGHT) + legend(list(series))


def bars(groups: Sequence[str], series: Mapping[str, Sequence[float]], y_title: str) -> str:
    """A group of bars for each of `groups`, with a bar for each name; values from 0."""
    most = max((value for values in series.values() for value in values), default=0.0) or 1.0
    parts = [_axes(None, most, "", y_title)]
    share = 1.0 / max(len(groups), 1)
    width = min(0.8 * share / max(len(series), 1), WIDEST_BAR)
    for place, group in enumerate(groups):
        middle = _x((place + 0.5) * share)
        parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 14}" text-anchor="middle">{escape(group)}</text>')
        for number, (name, values) in enumerate(series.items()):
            left, top = (
                _x((place + 0.5) * share + (number - len(series) / 2) * width),
                _y(values[place] / most),
            )
            parts.append(
                f'<rect x="{left:.1f}" y="{top:.1f}" width="{width * (WIDTH - LEFT - RIGHT):.1f}"'
                f' height="{HEIGHT - BOTTOM - top:.1f}" fill="{COLOURS[number % len(COLOURS)]}">'
                f"<title>{escape(name)}, {escape(group)}: {values[place]:.4f}</title></rect>"
            )
    return _svg(parts, HEIGHT) + legend(list(series))


def legend(names: Sequence[str]) -> str:
    """Names with their colours."""
    swatches = (
        f'<span><i style="background:{COLOURS[place % len(COLOURS)]}"></i>{escape(name)}</span>'
        for place, name in enumerate(names)
    )
    return f'<p class="legend">{" ".join(swatches)}</p>'


def _x(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _svg(parts: Sequence[str], height: int) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>'


def _axes(most_x: float | None, most_y: float, x_title: str, y_title: str) -> str:
    """Grid lines at round numbers, and titles."""
    parts = []
    for value in _ticks(most_y):
        at = _y(value / most_y)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>'
            f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        )
    for value in _ticks(most_x) if most_x is not None else ():
        at = _x(value / (most_x or 1.0))
        parts.append(
            f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:,.0f}</text>'
        )
    parts.append(
        f'<text x="{_x(0.5):.0f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_title)}</text>'
        f'<text x="14" y="{_y(0.5):.0f}" text-anchor="middle" transform="rotate(-90 14 {_y(0.5):.0f})">'
        f"{escape(y_title)}</text>"
    )
    return "".join(parts)


def _ticks(most: float) -> list[float]:
    """0 and multiples of a round step up to `most`, four to eight of them.

    >>> _ticks(0.23)
    [0.0, 0.05, 0.1, 0.15000000000000002, 0.2]
    """
    rough = most / 5.0
    unit: float = 10.0 ** math.floor(math.log10(rough))
    step = unit * min((k for k in (1.0, 2.0, 5.0, 10.0) if k * unit >= rough * 0.999), default=10.0)
    return [k * step for k in range(int(most / step + 1e-9) + 1)]
