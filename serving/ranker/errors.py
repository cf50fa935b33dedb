"""Errors of rankers and of the registry.

::

    RankerError                      a ranker can't be loaded or gave what can't be used
    └── RankerRefusedError           a version failed its checks at load: the old one goes on serving
    RegistryError                    the registry can't give or take a version
"""

from __future__ import annotations

__all__ = ["RankerError", "RankerRefusedError", "RegistryError"]


class RankerError(Exception):
    """The ranker can't be loaded, was called with wrong shapes, or gave a score that is no number."""


class RankerRefusedError(RankerError):
    """A version failed one of its checks at load."""


class RegistryError(Exception):
    """A version is missing, already there, or can't be read or written."""
