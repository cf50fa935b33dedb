"""Parameters of models, checked at construction by one rule and in one sentence."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["require", "require_ranges"]


def require(name: str, value: float, low: float, high: float) -> None:
    """Raises ValueError, naming the parameter, unless low <= value <= high.

    >>> require("dimension", 0, 1, 1024)
    Traceback (most recent call last):
    ValueError: dimension is 0, but 1 to 1024 is needed
    """
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, but {low:g} to {high:g} is needed")


def require_ranges(model: object, ranges: Iterable[tuple[str, float, float]]) -> None:
    """`require` of the model's attributes by (name, low, high)."""
    for name, low, high in ranges:
        require(name, getattr(model, name), low, high)
