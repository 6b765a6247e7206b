"""The models that are simulated on keep the contracts that the adapters keep, as long as nothing goes wrong."""

import time
from collections.abc import AsyncIterator
from random import Random

import anyio.lowlevel
import pytest

from outboxkit.broker import Broker
from outboxkit.testing import BrokerContract, StoreContract
from outboxkit.testing.rows import SOURCE
from outboxkit.testing.simulation.line import BROKER, STORE, Ended, Line, Place
from outboxkit.testing.simulation.model_broker import LineBroker, ModelBroker
from outboxkit.testing.simulation.model_store import ModelDatabase, ModelStore
from outboxkit.testing.simulation.trace import Trace

LAG_SECONDS = 0.0005


async def never_frozen(what: str) -> None:
    await anyio.lowlevel.checkpoint()


def line(errors: Ended) -> Line:
    return Line("test", Place("place", errors, Trace(time.monotonic), Random(1), slowness=0.0), never_frozen)


def model_store(database: ModelDatabase | None = None) -> ModelStore:
    return ModelStore(database or ModelDatabase(time.time, 0.0, LAG_SECONDS, 0, 0.0, lambda _: None), line(STORE))


class TestModelStore(StoreContract):
    @pytest.fixture
    def database(self) -> ModelDatabase:
        return ModelDatabase(time.time, 0.0, LAG_SECONDS, 0, 0.0, lambda _: None)

    @pytest.fixture
    async def store(self, database: ModelDatabase) -> AsyncIterator[ModelStore]:
        store = model_store(database)
        await store.migrate(SOURCE)
        await store.open(SOURCE)
        yield store
        await store.aclose()

    @pytest.fixture
    async def peer(self, store: ModelStore, database: ModelDatabase) -> AsyncIterator[ModelStore]:
        peer = model_store(database)
        await peer.open(SOURCE)
        yield peer
        await peer.aclose()

    def fresh(self) -> ModelStore:
        return model_store()


class TestModelBroker(BrokerContract):
    @pytest.fixture
    def shared(self) -> ModelBroker:
        return ModelBroker()

    @pytest.fixture
    async def broker(self, shared: ModelBroker) -> AsyncIterator[LineBroker]:
        self.model = shared
        broker = LineBroker(shared, line(BROKER), lambda _: None)
        await broker.open()
        yield broker
        await broker.aclose()

    @pytest.fixture
    async def peer(self, shared: ModelBroker, broker: LineBroker) -> AsyncIterator[LineBroker]:
        peer = LineBroker(shared, line(BROKER), lambda _: None)
        await peer.open()
        yield peer
        await peer.aclose()

    async def wipe(self, broker: Broker) -> None:
        self.model.wipe()
