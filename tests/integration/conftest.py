"""Fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.settings import Settings
from tests.integration.worker_process import Deployment, deployment


@pytest.fixture
def fleet(settings: Settings, freshet_env: dict[str, str], tmp_path: Path) -> Iterator[Deployment]:
    """No worker yet, on topics of the test's own; whatever was started is stopped behind the test."""
    with deployment(settings, freshet_env, tmp_path) as made:
        yield made
