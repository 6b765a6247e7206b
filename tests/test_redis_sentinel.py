"""What the Redis broker does about Sentinels' own ways: stale ones, silent ones, services they do not know, passwords."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import anyio
import pytest

from outboxkit.broker import Append
from outboxkit.errors import BrokerUnavailableError
from outboxkit.message import ORIGIN, Position
from outboxkit.testing.redis_server import RedisServer
from outboxkit.testing.streams import filled, majors_of, new_entries, new_stream, read_all
from outboxkit_redis import RedisBroker
from tests.redis_brokers import Connect
from tests.redis_sentinel import SERVICE, Sentinel, WatchedRedis, answers, ask
from tests.waiting import until

REPLICA = "it has become a replica; it is a replica now: the primary is looked for again"


@pytest.fixture
def own_watched(redis_binary: str) -> Iterator[WatchedRedis]:
    """Servers and Sentinels that a test may end."""
    with WatchedRedis(redis_binary) as watched:
        yield watched


async def test_the_replica_is_used_when_it_was_promoted_and_has_what_it_was_given(
    own_watched: WatchedRedis, connect: Connect
) -> None:
    broker = await connect(own_watched.url)
    stream = new_stream()
    await filled(broker, stream, [1, 2])
    await broker.subscribe("group", stream, ORIGIN)
    await until(own_watched.in_step)
    master, replica = own_watched.master, own_watched.replica
    master.kill()
    with pytest.raises(
        BrokerUnavailableError, match=rf"the primary 127\.0\.0\.1:{master.port} of the broker redis\+sentinel://.*check that it"
    ):
        await broker.last([stream])
    await until(lambda: {own_watched.named_by(sentinel) for sentinel in own_watched.sentinels} == {replica.port})
    assert await broker.last([stream]) == {stream: Position(2, 0)}
    assert majors_of(await read_all(broker, "group", "reader", [stream])) == [1, 2]


async def test_a_primary_that_has_become_a_replica_is_asked_nothing(redis_binary: str, connect: Connect) -> None:
    """Also while the Sentinel still names it: a replica knows ends of streams too, but not those that count."""
    sentinel = Sentinel(redis_binary, quorum=1)
    with RedisServer(redis_binary) as old, RedisServer(redis_binary) as new:
        try:
            sentinel.start(old)
            url = f"redis+sentinel://127.0.0.1:{sentinel.port}/{SERVICE}"
            broker = await connect(url)
            await until(lambda: _last_or_none(broker))
            ask(old.port, "REPLICAOF", "127.0.0.1", new.port)
            ask(old.port, "CLIENT", "KILL", "TYPE", "normal")  # as Sentinels do when they demote a primary
            for each in (broker, await connect(url)):
                await until(partial(_trouble, each), lambda text: REPLICA in text)
        finally:
            sentinel.stop()


async def test_a_primary_that_refuses_to_write_without_replicas_is_left_when_another_was_promoted(
    redis_binary: str, connect: Connect
) -> None:
    """As one that only clients still reach: nobody can tell it that it is a replica now."""
    sentinel = Sentinel(redis_binary, quorum=1)
    stream = new_stream()
    with RedisServer(redis_binary) as old, RedisServer(redis_binary) as new:
        try:
            sentinel.start(old)
            broker = await connect(f"redis+sentinel://127.0.0.1:{sentinel.port}/{SERVICE}")
            await until(lambda: _last_or_none(broker))
            await filled(broker, stream, [1])
            ask(old.port, "CONFIG", "SET", "min-replicas-to-write", 1)
            ask(sentinel.port, "SENTINEL", "REMOVE", SERVICE)
            ask(sentinel.port, "SENTINEL", "MONITOR", SERVICE, "127.0.0.1", new.port, 1)
            assert await broker.last([stream]) == {stream: Position(1, 0)}, "it is still there, and answers"
            with pytest.raises(BrokerUnavailableError, match=r"NOREPLICAS.*bring them back, or wait"):
                await broker.append([Append(Position(1, 0), new_entries(stream, [2]))])
            assert await broker.last([stream]) == {stream: ORIGIN}
        finally:
            sentinel.stop()


async def test_of_sentinels_that_disagree_the_one_with_the_newest_configuration_counts(
    redis_binary: str, connect: Connect
) -> None:
    knowing = Sentinel(redis_binary, quorum=1, settings=(f"sentinel config-epoch {SERVICE} 5",))
    stale = [Sentinel(redis_binary, quorum=1) for _ in range(2)]
    stream = new_stream()
    with ExitStack() as running:
        old, new = (running.enter_context(RedisServer(redis_binary)) for _ in range(2))
        for sentinel, master in ((stale[0], old), (knowing, new), (stale[1], old)):
            running.callback(sentinel.stop)
            sentinel.start(master)
        places = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in (stale[0], knowing, stale[1]))
        for sentinel in (stale[0], knowing, stale[1]):
            await until(partial(answers, sentinel))
        broker = await connect(f"redis+sentinel://{places}/{SERVICE}")
        await filled(broker, stream, [1])
        assert [ask(server.port, "DBSIZE") for server in (old, new)] == [0, 1]


async def test_sentinels_that_are_silent_or_gone_cost_little_as_long_as_one_answers(
    watched_redis: WatchedRedis, connect: Connect
) -> None:
    silent, _, living = watched_redis.sentinels
    broker = await connect(f"redis+sentinel://127.0.0.1:{silent.port},127.0.0.1:1,127.0.0.1:{living.port}/{SERVICE}")
    silent.pause()
    try:
        started = anyio.current_time()
        await filled(broker, new_stream(), [1])
        assert anyio.current_time() - started < 3.0
    finally:
        silent.resume()


async def test_when_no_sentinel_answers_one_is_named(connect: Connect) -> None:
    broker = await connect(f"redis+sentinel://user:pa55word@127.0.0.1:1,127.0.0.1:2/{SERVICE}?sentinel_password=s3cret")
    with pytest.raises(
        BrokerUnavailableError, match=r"the Sentinel 127\.0\.0\.1:\d of the broker .*check that it runs"
    ) as caught:
        await broker.last([new_stream()])
    assert "pa55word" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


async def test_a_service_that_no_sentinel_knows_is_named(watched_redis: WatchedRedis, connect: Connect) -> None:
    broker = await connect(watched_redis.url.replace(SERVICE, "another"))
    with pytest.raises(BrokerUnavailableError, match=r"it knows no service 'another'; check the service's name"):
        await broker.last([new_stream()])


async def test_what_is_no_sentinel_is_told(redis_url: str, connect: Connect) -> None:
    broker = await connect(f"{redis_url.replace('redis', 'redis+sentinel', 1)}/{SERVICE}")
    with pytest.raises(BrokerUnavailableError, match="it is something else than the broker's URL says: check host, port"):
        await broker.last([new_stream()])


async def test_sentinels_and_servers_have_passwords_of_their_own(
    redis_binary: str, watched_redis: WatchedRedis, connect: Connect
) -> None:
    master = watched_redis.master
    ask(master.port, "ACL", "SETUSER", "guest", "on", ">pa55word", "~*", "+@all", "-role")
    sentinel = Sentinel(redis_binary, quorum=1, settings=("requirepass s3cret",))
    try:
        sentinel.start(master)
        place = f"127.0.0.1:{sentinel.port}/{SERVICE}"
        right = await connect(f"redis+sentinel://guest:pa55word@{place}/0?sentinel_password=s3cret")
        await until(lambda: _last_or_none(right))
        wrong = await connect(f"redis+sentinel://guest:pa55word@{place}/0?sentinel_password=wr0ng")
        with pytest.raises(BrokerUnavailableError, match=r"the Sentinel .*check the user and the password") as caught:
            await wrong.last([new_stream()])
        assert "wr0ng" not in f"{caught.value} {caught.value.__cause__!r} {vars(wrong)}"
        other = await connect(f"redis+sentinel://guest:wr0ng@{place}/0?sentinel_password=s3cret")
        with pytest.raises(BrokerUnavailableError, match=r"the primary .*check the user and the password"):
            await other.last([new_stream()])
    finally:
        sentinel.stop()
        ask(master.port, "ACL", "DELUSER", "guest")


async def _last_or_none(broker: RedisBroker) -> object:
    try:
        return await broker.last([new_stream()])
    except BrokerUnavailableError:
        return None


async def _trouble(broker: RedisBroker) -> str:
    try:
        await broker.last([new_stream()])
    except BrokerUnavailableError as error:
        return str(error)
    return ""
