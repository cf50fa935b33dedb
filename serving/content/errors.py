"""What can go wrong with content. A bad item is told and masked; a bad setting stops the start."""

from __future__ import annotations

__all__ = ["ContentError"]


class ContentError(Exception):
    """An encoder can't be had or loaded, or what an item gives can't be encoded."""
