"""Brokers of each kind."""

from pathlib import Path

import pytest

from outboxkit.testing.server_process import free_port


@pytest.fixture(params=["redis", "embedded"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty broker."""
    if request.param == "embedded":
        return f"sqlite:///{tmp_path / 'broker.db'}"
    url: str = request.getfixturevalue("redis_url")
    return url


@pytest.fixture
def unused_port() -> int:
    """A port at which nobody answers."""
    return free_port()
