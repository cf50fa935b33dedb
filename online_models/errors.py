"""What can go wrong in the online models.

OnlineModelError(Exception)
└── SnapshotMismatchError      a snapshot made by other settings, kernels or another CPU target
"""

from __future__ import annotations

__all__ = ["OnlineModelError", "SnapshotMismatchError"]


class OnlineModelError(Exception):
    """Base of this package's own errors; bad arguments raise ValueError and TypeError."""


class SnapshotMismatchError(OnlineModelError):
    """A snapshot that these settings, kernels or this CPU can't carry on bit for bit."""
