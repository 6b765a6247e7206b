"""The contract of a broker as a pytest suite; see `BrokerContract`."""

import contextlib

import anyio

from outboxkit.broker import Broker
from outboxkit.errors import BrokerError, GroupMissingError
from outboxkit.message import ORIGIN, Delivery, Position
from outboxkit.testing.contract_broker_groups import BrokerGroupsContract
from outboxkit.testing.contract_broker_log import BrokerLogContract
from outboxkit.testing.contract_broker_pending import BrokerPendingContract
from outboxkit.testing.contract_broker_trim import BrokerTrimContract
from outboxkit.testing.streams import chained, filled, majors_of, new_stream, pending_all, read_all


class BrokerContract(BrokerLogContract, BrokerGroupsContract, BrokerPendingContract, BrokerTrimContract):
    """Everything `outboxkit.broker.Broker` promises, each promise as a test named for it.

    Subclass it in a test module, with two pytest fixtures and one method, and let pytest run its ``async def`` tests (with
    pytest-asyncio's ``asyncio_mode = auto``, for one)::

        class TestMyBroker(BrokerContract):
            @pytest.fixture
            async def broker(self) -> AsyncIterator[MyBroker]: ...   # open, and closed at the end

            @pytest.fixture
            async def peer(self, broker: MyBroker) -> AsyncIterator[MyBroker]: ...   # a second client of the same broker

            async def wipe(self, broker: Broker) -> None: ...        # make the broker lose everything it holds
    """

    async def wipe(self, broker: Broker) -> None:
        """Make the broker lose everything it holds, as a restart without a disk would."""
        raise NotImplementedError

    async def test_a_loss_shows_in_the_last_positions_and_can_be_replayed(self, broker: Broker, peer: Broker) -> None:
        stream = new_stream()
        entries = await filled(broker, stream, range(1, 6))
        await broker.announce([stream])
        await broker.subscribe("group", stream, ORIGIN)
        await broker.read("group", "reader", [stream], limit=3, wait_seconds=0.0)
        await self.wipe(broker)
        assert await broker.last([stream]) == {stream: ORIGIN}
        assert list(await broker.range(stream, after=ORIGIN, upto=None, limit=10)) == []
        assert list(await peer.streams(stream.topic)) == []
        await peer.subscribe("group", stream, Position(3, 0))
        assert list(await filled(broker, stream, range(1, 6))) == list(entries)
        found = await read_all(peer, "group", "reader", [stream])
        assert majors_of(found) == [4, 5]
        assert chained(found, after=Position(3, 0))
        assert majors_of(await pending_all(peer, "group", "reader", stream)) == [4, 5]

    async def test_a_loss_ends_or_empties_the_reads_of_its_groups(self, broker: Broker) -> None:
        stream = new_stream()
        await filled(broker, stream, [1])
        await broker.subscribe("group", stream, ORIGIN)
        await read_all(broker, "group", "reader", [stream])
        found = list[Delivery]()

        async def read() -> None:
            with contextlib.suppress(GroupMissingError):
                found.extend(await broker.read("group", "reader", [stream], limit=10, wait_seconds=0.5))

        with anyio.fail_after(10.0):
            async with anyio.create_task_group() as readers:
                readers.start_soon(read)
                await anyio.wait_all_tasks_blocked()
                await self.wipe(broker)
            await read()
        assert found == []

    async def test_closing_takes_less_than_a_second_and_ends_waiting_reads(self, broker: Broker) -> None:
        stream = new_stream()
        await broker.subscribe("group", stream, ORIGIN)

        async def read() -> None:
            with contextlib.suppress(BrokerError):
                await broker.read("group", "reader", [stream], limit=10, wait_seconds=30.0)

        with anyio.fail_after(5.0):
            async with anyio.create_task_group() as readers:
                readers.start_soon(read)
                await anyio.wait_all_tasks_blocked()
                started = anyio.current_time()
                await broker.aclose()
                assert anyio.current_time() - started < 1.0

    async def test_closing_twice_is_harmless_and_opening_again_works(self, broker: Broker) -> None:
        stream = new_stream()
        for _ in range(2):
            await broker.aclose()
        for _ in range(2):
            await broker.open()
        assert await broker.last([stream]) == {stream: ORIGIN}
