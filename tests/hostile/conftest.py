"""What hostile input is sent to."""

import pytest

from outboxkit.testing.server_process import free_port


@pytest.fixture
def unused_port() -> int:
    """A port at which nobody answers."""
    return free_port()
