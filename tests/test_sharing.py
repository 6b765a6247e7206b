"""Several processes of one group share its streams: who reads what, what moves when, and what stays as it was."""

from collections import Counter
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec

from outboxkit import RetryPolicy, Settings
from outboxkit.errors import BrokerUnavailableError
from outboxkit.inbox import Subscription
from outboxkit.message import ORIGIN
from outboxkit.roster import Roster
from outboxkit.testing import MemoryBroker
from tests.databases import Place
from tests.services import QUICK, Publisher, Reader
from tests.waiting import until

# Nobody is waited for until its time runs out: whatever is handed over in these tests is handed over by itself.
PATIENT = msgspec.structs.replace(QUICK, consumer=msgspec.structs.replace(QUICK.consumer, lease_seconds=600.0))
EVERYTHING = 600.0


class Group:
    """A publisher of four partitions, and readers of one group on one database."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.broker = MemoryBroker()
        self.publisher = Publisher(place, self.broker)
        self.drawn = 0

    async def reader(self, name: str, settings: Settings = PATIENT) -> Reader:
        return await Reader(self.place, self.broker, settings=settings, name=name).migrate()

    async def draw(self, count: int = 20) -> None:
        for _ in range(count):
            await self.publisher.draw(self.drawn)
            self.drawn += 1

    @asynccontextmanager
    async def publishing(self) -> AsyncGenerator["Group", None]:
        await self.publisher.migrate()
        async with self.publisher.app:
            await self.draw()
            await until(lambda: self.broker.streams("numbers"), lambda found: len(found) == 4)
            yield self


async def roster(reader: Reader) -> Roster:
    return await reader.app.store.roster("noting")


async def shares(reader: Reader) -> dict[str, int]:
    """How many streams each live reader has, by the name people know it by."""
    found = await roster(reader)
    counts = {member.split("/")[0]: 0 for member in found.members}
    for owner in found.owners.values():
        if owner.member in found.members:
            counts[str(owner.member).split("/")[0]] += 1
    return counts


async def all_noted(group: Group, reader: Reader) -> None:
    noted = await until(reader.noted, lambda noted: len(noted) >= group.drawn)
    assert sorted(noted) == list(range(group.drawn))
    for key in range(10):
        assert [number for number in noted if number % 10 == key] == list(range(key, group.drawn, 10))


async def test_streams_are_shared_out_evenly_and_anew_when_somebody_comes_or_goes(place: Place) -> None:
    async with Group(place).publishing() as group:
        one, two, three = [await group.reader(name) for name in ("one", "two", "three")]
        async with one.app:
            await until(lambda: shares(one), lambda found: found == {"one": 4})
            async with two.app:
                await until(lambda: shares(one), lambda found: found == {"one": 2, "two": 2})
                async with three.app:
                    await until(lambda: shares(one), lambda found: sorted(found.values()) == [1, 1, 2])
                    await group.draw(40)
                    await all_noted(group, one)
                await until(lambda: shares(one), lambda found: found == {"one": 2, "two": 2})
                await group.draw(40)
            await until(lambda: shares(one), lambda found: found == {"one": 4})
            await group.draw(40)
            await all_noted(group, one)
        assert not any(reader.observer.crashes for reader in (one, two, three))


async def test_more_readers_than_streams_wait_for_their_turn(place: Place) -> None:
    async with Group(place).publishing() as group:
        readers = [await group.reader(f"reader-{number}") for number in range(5)]
        async with readers[0].app, readers[1].app, readers[2].app, readers[3].app, readers[4].app:
            await until(lambda: shares(readers[0]), lambda found: sorted(found.values()) == [0, 1, 1, 1, 1])
            await all_noted(group, readers[0])


async def test_what_a_reader_left_when_it_died_is_read_when_its_time_is_over(place: Place) -> None:
    async with Group(place).publishing() as group:
        reader = await group.reader("alive")
        async with reader.app:
            await until(lambda: shares(reader), lambda found: found == {"alive": 4})
            store = reader.app.store
            await store.enroll("noting", "dead", ["numbers"], 1.0)
            await until(lambda: shares(reader), lambda found: found == {"alive": 2, "dead": 0})
            free = [stream for stream, owner in (await roster(reader)).owners.items() if owner.member is None]
            assert len(await store.claim("noting", "dead", free)) == 2
            await group.draw()
            await until(lambda: shares(reader), lambda found: found == {"alive": 4})
            await all_noted(group, reader)


async def test_a_reader_whose_streams_others_claimed_settles_nothing_of_them_and_has_them_back_in_the_end(place: Place) -> None:
    async with Group(place).publishing() as group:
        reader = await group.reader("stopped")
        async with reader.app:
            await until(lambda: shares(reader), lambda found: found == {"stopped": 4})
            await all_noted(group, reader)
            store, streams = reader.app.store, await group.broker.streams("numbers")

            async def take_over() -> Collection[Subscription]:
                for member in (await roster(reader)).members.keys() - {"another"}:  # it may come back in between
                    await store.leave("noting", member)
                return await store.claim("noting", "another", streams)

            await store.enroll("noting", "another", ["nothing of this"], EVERYTHING)
            claimed = await until(take_over, lambda found: len(found) == 4)
            settled = reader.observer.count["settled"]
            await group.draw()
            with anyio.move_on_after(0.5):
                while len(reader.noted()) == settled:
                    await anyio.sleep(0.01)
            assert len(reader.noted()) == settled, "these streams are another's"
            await store.hand_over(dict.fromkeys(claimed, ORIGIN))
            await all_noted(group, reader)
            assert not reader.observer.crashes


async def test_a_stream_changes_hands_when_what_is_being_handled_is_done(place: Place) -> None:
    """However long that takes."""
    async with Group(place).publishing() as group:
        one, two = await group.reader("one"), await group.reader("two")
        go, handled = anyio.Event(), Counter[int]()

        async def noting(number: int) -> None:
            handled[number] += 1
            await go.wait()

        one.noting = two.noting = noting  # type: ignore[method-assign]
        async with one.app:
            await until(lambda: len(handled), lambda count: count == min(4, one.app.store.concurrency))
            async with two.app:
                if not isinstance(place, Path):  # whoever writes an SQLite file is alone with it
                    await until(lambda: shares(one), lambda found: "two" in found)
                with anyio.move_on_after(0.5):
                    while (await shares(one)).get("two", 0) == 0:
                        await anyio.sleep(0.01)
                assert (await shares(one))["one"] == 4
                go.set()
                await until(lambda: shares(one), lambda found: found == {"one": 2, "two": 2})
                await all_noted(group, one)
    assert set(handled.values()) == {1}


async def test_retries_go_on_where_their_stream_is_read(place: Place) -> None:
    retrying = msgspec.structs.replace(PATIENT, retry=RetryPolicy(attempts=1000, first_seconds=0.02, factor=1.0))
    async with Group(place).publishing() as group:
        readers = [await Reader(group.place, group.broker, settings=retrying, name=name).migrate() for name in ("one", "two")]
        tries: list[str] = []

        def failing(name: str) -> None:
            async def noting(number: int) -> None:
                if number == 3:
                    tries.append(name)
                    if name == "one":
                        raise ValueError("not here")

            readers[name == "two"].noting = noting  # type: ignore[method-assign]

        failing("one")
        failing("two")
        async with readers[0].app:
            await until(lambda: len(tries), lambda count: count > 3)
        async with readers[1].app:
            await all_noted(group, readers[1])
    assert tries.count("two") == 1


async def test_partitions_that_are_added_are_found_and_read(place: Place) -> None:
    async with Group(place).publishing() as group:
        reader = await group.reader("one")
        async with reader.app:
            await all_noted(group, reader)
            more = msgspec.structs.replace(QUICK, partitions={"numbers": 7})
            larger = await Publisher(place, group.broker, settings=more).migrate()
            async with larger.app:
                for number in range(group.drawn, group.drawn + 100):
                    await larger.draw(number)
                streams = await until(lambda: group.broker.streams("numbers"), lambda found: len(found) > 5)
                await until(lambda: shares(reader), lambda found: found == {"one": len(streams)})
                noted = await until(reader.noted, lambda noted: len(noted) >= group.drawn + 100)
                assert sorted(noted) == list(range(group.drawn + 100))


class Cut:
    """The way to a broker, which can be cut."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self.is_cut = False

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any, **kwargs: Any) -> Any:
            if self.is_cut and name != "aclose":
                raise BrokerUnavailableError("cut")
            return await getattr(self._broker, name)(*args, **kwargs)

        return call


async def test_a_reader_that_cannot_reach_the_broker_leaves_its_streams_to_one_that_can(place: Place) -> None:
    async with Group(place).publishing() as group:
        cut = Cut(group.broker)
        quick = msgspec.structs.replace(QUICK, consumer=msgspec.structs.replace(QUICK.consumer, lease_seconds=0.5))
        one = await Reader(place, cut, settings=quick, name="one").migrate()
        two = await Reader(place, group.broker, settings=quick, name="two").migrate()
        async with one.app, two.app:
            await until(lambda: shares(two), lambda found: found == {"one": 2, "two": 2})
            cut.is_cut = True
            await until(lambda: shares(two), lambda found: found == {"two": 4})
            await group.draw()
            await all_noted(group, two)
            cut.is_cut = False
            await until(lambda: shares(two), lambda found: found == {"one": 2, "two": 2})


async def test_streams_are_shared_out_also_when_reading_waits_longer_than_the_lease(place: Place) -> None:
    waiting = msgspec.structs.replace(QUICK.consumer, wait_seconds=600.0, lease_seconds=1.5)
    settings = msgspec.structs.replace(QUICK, consumer=waiting)
    async with Group(place).publishing() as group:
        one, two = [await group.reader(name, settings) for name in ("one", "two")]
        async with one.app:
            await until(lambda: shares(one), lambda found: found == {"one": 4})
            async with two.app:
                await until(lambda: shares(one), lambda found: found == {"one": 2, "two": 2})
            await until(lambda: shares(one), lambda found: found == {"one": 4})
            await all_noted(group, one)
