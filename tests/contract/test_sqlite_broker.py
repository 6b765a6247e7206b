"""The embedded broker keeps the contract."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from outboxkit.broker import Broker
from outboxkit.testing import BrokerContract
from outboxkit_sqlite.broker import SQLiteBroker


class TestSQLiteBroker(BrokerContract):
    @pytest.fixture
    async def broker(self, tmp_path: Path) -> AsyncIterator[SQLiteBroker]:
        self.path = tmp_path / "broker.db"
        broker = SQLiteBroker(f"sqlite:///{self.path}")
        await broker.open()
        yield broker
        await broker.aclose()

    @pytest.fixture
    async def peer(self, tmp_path: Path) -> AsyncIterator[SQLiteBroker]:
        broker = SQLiteBroker(f"sqlite:///{tmp_path / 'broker.db'}")
        await broker.open()
        yield broker
        await broker.aclose()

    async def wipe(self, broker: Broker) -> None:
        for path in self.path.parent.glob("broker.db*"):
            path.unlink()
