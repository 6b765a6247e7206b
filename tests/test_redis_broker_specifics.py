"""What the Redis broker does about Redis's own ways: other writers, other types, deletions, lost replies, passwords."""

import asyncio
import re
import ssl
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis
import trustme

from outboxkit.broker import Append
from outboxkit.errors import (
    BrokerError,
    BrokerUnavailableError,
    ConfigurationError,
    GroupMissingError,
    StreamConflictError,
)
from outboxkit.log import Entries
from outboxkit.message import ORIGIN, Delivery, Position, Stream
from outboxkit.testing.redis_server import RedisServer
from outboxkit.testing.streams import chained, filled, majors_of, new_entries, new_stream, pending_all, read_all, until
from outboxkit_redis import RedisBroker, node
from outboxkit_redis import broker as redis_broker
from outboxkit_redis.refusal import CutOffError, Refusal, Server
from tests.redis_brokers import Connect
from tests.redis_sentinel import ask
from tests.tcp_proxy import TCPProxy


@pytest.fixture
async def broker(connect: Connect, redis_url: str) -> RedisBroker:
    return await connect(redis_url)


@pytest.fixture
def raw(redis_url: str) -> Iterator[Any]:
    driver: Any = redis.Redis
    with driver.from_url(redis_url, protocol=2) as raw:
        yield raw


@pytest.fixture
def own_server(redis_binary: str) -> Iterator[RedisServer]:
    """A server that a test may kill."""
    with RedisServer(redis_binary, options=("--maxmemory-policy", "noeviction")) as server:
        yield server


def key(stream: Stream) -> str:
    return f"outboxkit:{stream.topic}:{stream.partition}:{stream.source}"


# What others wrote


async def test_entries_of_others_are_delivered_readably_and_in_the_chain(broker: RedisBroker, raw: Any) -> None:
    stream = new_stream()
    await filled(broker, stream, [1])
    raw.xadd(key(stream), {"name": b"caf\xe9", "n": 1}, id="2-5")
    raw.xadd(key(stream), {"event": b"\x00envelope"}, id="3-0")
    raw.xadd(key(stream), {"event": b"envelope", "prev": b"what"}, id="4-0")
    raw.xadd(key(stream), {"event": b"envelope", "prev": b"9-0"}, id="5-0")
    raw.xadd(key(stream), {"prev": b"5-0", "more": b"", "event": b"envelope"}, id="6-0")
    await filled(broker, stream, [7], expected=Position(6, 0))
    await broker.subscribe("group", stream, ORIGIN)
    read = await read_all(broker, "group", "reader", [stream])
    assert [delivery.envelope for delivery in read[1:-1]] == [
        b'{"name": "caf\\\\xe9", "n": "1"}',
        b"\x00envelope",
        b"envelope",
        b"envelope",
        b"envelope",
    ]
    assert chained(read)
    assert await broker.range(stream, after=ORIGIN, upto=None, limit=10) == read
    assert await broker.pending("group", "reader", stream, after=ORIGIN, limit=10) == read
    assert await broker.reclaim("group", "other", [stream], idle_seconds=0.0, limit=10) == read


async def test_the_first_entry_by_another_follows_the_origin(broker: RedisBroker, raw: Any) -> None:
    stream = new_stream()
    raw.xadd(key(stream), {"a": "b"}, id="0-1")
    (entry,) = await broker.range(stream, after=ORIGIN, upto=None, limit=10)
    assert entry == Delivery(stream, Position(0, 1), ORIGIN, b'{"a": "b"}')


async def test_what_is_no_stream_is_a_conflict_that_names_the_key(broker: RedisBroker, raw: Any) -> None:
    stream, fine = new_stream(), new_stream()
    raw.set(key(stream), "text")
    raw.set(f"outboxkit:{stream.topic}:streams", "text")
    await broker.subscribe("group", fine, ORIGIN)
    for call in (
        lambda: broker.last([fine, stream]),
        lambda: broker.append([Append(ORIGIN, new_entries(each, [1])) for each in (fine, stream)]),
        lambda: broker.range(stream, after=ORIGIN, upto=None, limit=1),
        lambda: broker.subscribe("group", stream, ORIGIN),
        lambda: broker.read("group", "reader", [stream], limit=1, wait_seconds=0.0),
        lambda: broker.pending("group", "reader", stream, after=ORIGIN, limit=1),
        lambda: broker.ack("group", {stream: [Position(1, 0)]}),
        lambda: broker.announce([stream]),
        lambda: broker.streams(stream.topic),
    ):
        with pytest.raises(StreamConflictError, match=f"outboxkit:{stream.topic}:.*rename or delete it"):
            await call()
    assert raw.get(key(stream)) == b"text"


async def test_what_others_put_among_the_announced_streams_is_left_out(broker: RedisBroker, raw: Any) -> None:
    stream = new_stream(3)
    await broker.announce([stream])
    raw.sadd(f"outboxkit:{stream.topic}:streams", "what", "x:y", "4:", b"\xff")
    assert list(await broker.streams(stream.topic)) == [stream]


# What others removed


async def test_pending_entries_deleted_from_the_stream_are_left_out_and_forgotten(broker: RedisBroker, raw: Any) -> None:
    stream = new_stream()
    await filled(broker, stream, range(1, 11))
    await broker.subscribe("group", stream, ORIGIN)
    await read_all(broker, "group", "reader", [stream])
    raw.xdel(key(stream), *(f"{major}-0" for major in (1, 2, 3, 4, 5, 8)))
    assert majors_of(await broker.pending("group", "reader", stream, after=ORIGIN, limit=2)) == [6, 7]
    assert majors_of(await pending_all(broker, "group", "reader", stream)) == [6, 7, 9, 10]
    assert raw.xpending(key(stream), "group")["pending"] == 4


async def test_idle_entries_deleted_from_the_stream_are_left_out_and_forgotten(broker: RedisBroker, raw: Any) -> None:
    stream = new_stream()
    await filled(broker, stream, range(1, 11))
    await broker.subscribe("group", stream, ORIGIN)
    await read_all(broker, "group", "reader", [stream])
    raw.xdel(key(stream), *(f"{major}-0" for major in (1, 2, 3, 4, 5, 8)))
    taken = await broker.reclaim("group", "other", [stream], idle_seconds=0.0, limit=10)
    assert majors_of(taken) == [6, 7, 9, 10]
    assert raw.xpending(key(stream), "group")["pending"] == 4


async def test_a_stream_trimmed_empty_keeps_its_last_position(broker: RedisBroker, raw: Any) -> None:
    stream = new_stream()
    await filled(broker, stream, [1, 2])
    raw.xtrim(key(stream), maxlen=0)
    assert await broker.last([stream]) == {stream: Position(2, 0)}
    assert list(await broker.range(stream, after=ORIGIN, upto=None, limit=10)) == []
    await filled(broker, stream, [3], expected=Position(2, 0))
    (entry,) = await broker.range(stream, after=ORIGIN, upto=None, limit=10)
    assert entry.prev == Position(2, 0)


async def test_what_a_deleted_reader_or_a_moved_group_skipped_is_read_by_range(broker: RedisBroker, raw: Any) -> None:
    stream = new_stream()
    await filled(broker, stream, range(1, 11))
    await broker.subscribe("group", stream, ORIGIN)
    await broker.read("group", "reader", [stream], limit=3, wait_seconds=0.0)
    raw.xgroup_delconsumer(key(stream), "group", "reader")
    assert await pending_all(broker, "group", "reader", stream) == []
    raw.xgroup_setid(key(stream), "group", "8-0")
    (first, last) = await read_all(broker, "group", "reader", [stream])
    assert first.prev == Position(8, 0)  # which nobody was given: the chain tells
    hole = await broker.range(stream, after=ORIGIN, upto=first.prev, limit=100)
    assert chained([*hole, first, last])


async def test_a_read_whose_stream_is_deleted_meanwhile_is_told(broker: RedisBroker, raw: Any) -> None:
    stream = new_stream()
    await broker.subscribe("group", stream, ORIGIN)

    async def read() -> None:
        try:
            assert not await broker.read("group", "reader", [stream], limit=1, wait_seconds=1.0)
        except GroupMissingError:
            return
        with pytest.raises(GroupMissingError):  # Redis 6.2 tells the next one only
            await broker.read("group", "reader", [stream], limit=1, wait_seconds=0.0)

    async with anyio.create_task_group() as readers:
        readers.start_soon(read)
        await until(lambda: _blocked(raw), lambda count: count == 1)
        raw.delete(key(stream))


# Who reads no more


async def test_readers_that_hold_nothing_and_are_gone_for_long_are_forgotten_but_for_the_last(
    broker: RedisBroker, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_broker, "TIDY_SECONDS", 0.0)
    stream = new_stream()
    await filled(broker, stream, [1, 2, 3])
    await broker.subscribe("group", stream, ORIGIN)
    for reader in ("holding", "done", "last"):
        await broker.read("group", reader, [stream], limit=1, wait_seconds=0.0)
        await until(partial(_elapsed, raw, raw.time()), lambda micros: micros > 2000)  # so that one is the last
    await broker.ack("group", {stream: [Position(2, 0), Position(3, 0)]})
    await broker.settled("group", {stream: ORIGIN})
    assert _readers(raw, stream) == {"holding", "done", "last"}, "not even a day has passed"
    monkeypatch.setattr(redis_broker, "GONE_MILLISECONDS", 0)
    await broker.settled("group", {stream: ORIGIN, new_stream(): ORIGIN})
    assert _readers(raw, stream) == {"holding", "last"}
    assert majors_of(await pending_all(broker, "group", "holding", stream)) == [1]
    await filled(broker, stream, [4], expected=Position(3, 0))
    assert majors_of(await read_all(broker, "group", "done", [stream])) == [4], "one that comes back reads on"


async def test_readers_that_are_gone_are_not_looked_for_all_the_time(
    broker: RedisBroker, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = new_stream()
    await broker.subscribe("group", stream, ORIGIN)
    raw.config_resetstat()
    for _ in range(10):
        await broker.settled("group", {stream: ORIGIN})
    assert raw.info("commandstats")["cmdstat_eval"]["calls"] == 11


# What gets lost on the way


async def test_an_append_whose_reply_was_lost_is_not_sent_again(redis_url: str, broker: RedisBroker, connect: Connect) -> None:
    stream = new_stream()
    async with TCPProxy(redis_url).running() as proxy:
        through = await connect(proxy.url)
        proxy.losing = b"EVAL"
        for _ in range(2):  # on a new connection, then on one from the pool
            with pytest.raises(BrokerUnavailableError):
                await through.append([Append(ORIGIN, new_entries(stream, [1, 2]))])
            assert await through.streams(stream.topic) == []
        assert proxy.requests == 2
        proxy.losing = b""
        assert await through.append([Append(ORIGIN, new_entries(stream, [1, 2]))]) == [Position(2, 0)]
    assert majors_of(await broker.range(stream, after=ORIGIN, upto=None, limit=10)) == [1, 2]


async def test_a_read_whose_reply_was_lost_is_not_sent_again_and_pending_has_it(
    redis_url: str, broker: RedisBroker, connect: Connect
) -> None:
    stream = new_stream()
    await filled(broker, stream, range(1, 6))
    await broker.subscribe("group", stream, ORIGIN)
    async with TCPProxy(redis_url).running() as proxy:
        through = await connect(proxy.url)
        proxy.losing = b"XREADGROUP"
        with pytest.raises(BrokerUnavailableError):
            await through.read("group", "reader", [stream], limit=2, wait_seconds=1.0)
        assert proxy.requests == 1
    assert majors_of(await pending_all(broker, "group", "reader", stream)) == [1, 2]
    assert majors_of(await read_all(broker, "group", "reader", [stream])) == [3, 4, 5]


async def test_silence_ends_at_a_deadline(redis_url: str, monkeypatch: pytest.MonkeyPatch, connect: Connect) -> None:
    monkeypatch.setattr(node, "REPLY_SECONDS", 0.2)
    async with TCPProxy(redis_url).running() as proxy:
        through = await connect(proxy.url)
        proxy.losing, proxy.silent = b"SMEMBERS", True
        with pytest.raises(BrokerUnavailableError, match=r"did not answer within 0\.2 s"):
            await through.streams("topic")
        proxy.losing = b""
        assert await through.last([new_stream()])  # and not the late answer


async def test_a_cancelled_read_leaves_nothing_behind_for_the_next_command(broker: RedisBroker, raw: Any) -> None:
    stream, other = new_stream(), new_stream(5)
    await broker.announce([other])
    await broker.subscribe("group", stream, ORIGIN)
    for _ in range(10):
        with anyio.move_on_after(10.0) as cut_off:
            async with anyio.create_task_group() as readers:
                readers.start_soon(_read_for_ever, broker, stream)
                await until(lambda: _blocked(raw), lambda count: count == 1)
                readers.cancel_scope.cancel()
        assert not cut_off.cancelled_caught
        assert list(await broker.streams(other.topic)) == [other]
        await until(lambda: _blocked(raw), lambda count: count == 0)


async def test_closing_leaves_no_connection_on_the_server(redis_url: str, raw: Any, connect: Connect) -> None:
    before = len(raw.client_list())
    broker = await connect(redis_url)
    stream = new_stream()
    await broker.subscribe("group", stream, ORIGIN)
    async with anyio.create_task_group() as readers:
        for _ in range(3):
            readers.start_soon(_read_until_closed, broker, stream)
        await until(lambda: _blocked(raw), lambda count: count == 3)
        started = anyio.current_time()
        await broker.aclose()
        assert anyio.current_time() - started < 1.0
    await until(lambda: _count_clients(raw), lambda count: count == before)
    with pytest.raises(BrokerError, match="open"):
        await broker.streams("topic")


async def test_a_blocked_event_loop_is_told_beside_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "CONNECT_SECONDS", 0.2)
    for started in ("connecting", "answering"):
        reached = anyio.Event()

        async def never(*_: object, reached: anyio.Event = reached, **__: object) -> None:
            reached.set()
            await anyio.sleep_forever()

        with monkeypatch.context() as patch:
            if started == "connecting":
                patch.setattr(asyncio, "open_connection", never)
            else:
                patch.setattr(node.Node, "_round_trip", never)
                patch.setattr(node, "REPLY_SECONDS", 0.2)
            server = node.Node("redis://127.0.0.1:1", Server("the broker"))
            asked = asyncio.create_task(server.answers([node.Command("key", ("PING",))]))
            await reached.wait()
            time.sleep(2.5)  # noqa: ASYNC251 - as a handler may
            (refusal,) = await asked
        assert re.search(r"; or the event loop was blocked for 2 s, as by a function", str(refusal.as_error("key"))), started
        await server.aclose()
    assert "blocked" not in str(Refusal(CutOffError("did not answer within 10 s"), Server("the broker"), 0.4).as_error("key"))


async def test_a_killed_server_is_unavailable_and_used_again_when_it_is_back(own_server: RedisServer, connect: Connect) -> None:
    broker = await connect(own_server.url)
    stream = new_stream()
    await filled(broker, stream, [1, 2])
    own_server.kill()
    started = anyio.current_time()
    for _ in range(2):
        with pytest.raises(BrokerUnavailableError, match="check that it runs"):
            await broker.last([stream])
    assert anyio.current_time() - started < 2.0
    own_server.start()
    assert await broker.last([stream]) == {stream: ORIGIN}


async def test_a_full_server_is_unavailable_and_keeps_a_beginning_of_the_log(own_server: RedisServer, connect: Connect) -> None:
    driver: Any = redis.Redis
    with driver.from_url(own_server.url) as raw:
        raw.config_set("maxmemory", raw.info("memory")["used_memory"] + 4 * 1024 * 1024)
    broker = await connect(own_server.url)
    stream = new_stream()

    async def fill_up() -> None:
        last = ORIGIN
        while True:
            entries = new_entries(stream, range(last.major + 1, last.major + 5001))
            (last,) = await broker.append([Append(last, entries)])

    with pytest.raises(BrokerUnavailableError, match="raise its maxmemory"):
        await fill_up()
    there = (await broker.last([stream]))[stream]
    found = await broker.range(stream, after=ORIGIN, upto=None, limit=10**6)
    assert chained(found)
    assert majors_of(found) == list(range(1, there.major + 1))


async def test_a_consumer_that_starts_empties_a_server_that_is_full(own_server: RedisServer, connect: Connect) -> None:
    stream = new_stream()
    broker = await connect(own_server.url)
    await broker.subscribe("group", stream, ORIGIN)
    await filled(broker, stream, range(1, 2001))
    await broker.settled("group", {stream: Position(1, 0)})
    await broker.aclose()
    driver: Any = redis.Redis
    with driver.from_url(own_server.url) as raw:
        raw.config_set("maxmemory", raw.info("memory")["used_memory"] // 2)
        broker = await connect(own_server.url)
        with pytest.raises(BrokerUnavailableError, match="raise its maxmemory"):
            await broker.subscribe("another", stream, ORIGIN)
        await broker.subscribe("group", stream, Position(1, 0))
        found = await read_all(broker, "group", "reader", [stream])
        assert majors_of(found) == list(range(1, 2001))
        await broker.ack("group", {stream: [delivery.position for delivery in found]})
        if "denyoom" in raw.execute_command("COMMAND", "INFO", "XGROUP")["xgroup"]["flags"]:
            return  # Redis 6.2 has one rule for all of XGROUP, so that no group is noted to be further
        await broker.settled("group", {stream: found[-1].position})
        assert await broker.trim(stream, found[-1].position) == 1999


async def test_a_replica_is_unavailable_for_writing(own_server: RedisServer, connect: Connect) -> None:
    driver: Any = redis.Redis
    with driver.from_url(own_server.url) as raw:
        raw.replicaof("127.0.0.1", 1)
    broker = await connect(own_server.url)
    with pytest.raises(BrokerUnavailableError, match="names a replica"):
        await broker.announce([new_stream()])


def demote(server: RedisServer, other: RedisServer) -> None:
    ask(server.port, "REPLICAOF", "127.0.0.1", other.port)


def cut_off_from_its_primary(server: RedisServer, _: RedisServer) -> None:
    ask(server.port, "CONFIG", "SET", "replica-serve-stale-data", "no")
    ask(server.port, "REPLICAOF", "127.0.0.1", 1)


def cut_off_from_its_replicas(server: RedisServer, _: RedisServer) -> None:
    ask(server.port, "CONFIG", "SET", "min-replicas-to-write", 1)


@pytest.mark.parametrize("change", [demote, cut_off_from_its_primary, cut_off_from_its_replicas])
async def test_a_name_that_was_moved_to_the_new_primary_is_followed(
    own_server: RedisServer, redis_binary: str, connect: Connect, change: Callable[[RedisServer, RedisServer], None]
) -> None:
    """The old server closes no connection when it is demoted, and would refuse what is sent on them for ever."""
    stream = new_stream()
    with RedisServer(redis_binary) as other:
        async with TCPProxy(own_server.url).running() as name:
            broker = await connect(name.url)

            async def announced() -> list[BrokerError | None]:
                """How five calls at a time end."""

                async def announce() -> BrokerError | None:
                    try:
                        await broker.announce([stream])
                        await broker.streams(stream.topic)
                    except BrokerUnavailableError as error:
                        return error
                    return None

                return await asyncio.gather(*(announce() for _ in range(5)))

            assert await announced() == [None] * 5
            change(own_server, other)
            name.lead_to(other.url)
            with pytest.raises(BrokerUnavailableError):
                await broker.announce([stream])
                await broker.streams(stream.topic)
            assert await announced() == [None] * 5, "none of the connections that were idle meanwhile is used any more"
            assert list(await broker.streams(stream.topic)) == [stream]
            assert ask(other.port, "EXISTS", f"outboxkit:{stream.topic}:streams") == 1


async def test_thousands_of_entries_in_one_append(broker: RedisBroker) -> None:
    stream = new_stream()
    await filled(broker, stream, range(1, 12_001))
    found = await broker.range(stream, after=ORIGIN, upto=None, limit=20_000)
    assert majors_of(found) == list(range(1, 12_001))
    assert chained(found)


# Addresses


async def test_prefixes_keep_brokers_apart(redis_url: str, broker: RedisBroker, raw: Any, connect: Connect) -> None:
    other = await connect(f"{redis_url}?prefix=other.app")
    stream = new_stream()
    await filled(other, stream, [1])
    await other.announce([stream])
    assert await broker.last([stream]) == {stream: ORIGIN}
    assert list(await broker.streams(stream.topic)) == []
    assert {name.decode().split(":")[0] for name in raw.keys()} == {"other.app"}  # noqa: SIM118  it is no dict


async def test_a_wrong_password_is_reported_without_it(redis_url: str, raw: Any, connect: Connect) -> None:
    raw.acl_setuser("outboxkit-guest", enabled=True, passwords=["+pa55word"], keys=["*"], commands=["+@all"])
    address = redis_url.partition("//")[2]
    try:
        right = await connect(f"redis://outboxkit-guest:pa55word@{address}")
        assert list(await right.streams("topic")) == []
        wrong = await connect(f"redis://outboxkit-guest:wr0ng@{address}")
        with pytest.raises(BrokerUnavailableError, match="check the user and the password") as caught:
            await wrong.streams("topic")
        assert "wr0ng" not in f"{caught.value} {caught.value.__cause__!r} {vars(wrong)}"
    finally:
        raw.acl_deluser("outboxkit-guest")


async def test_missing_permissions_are_reported(redis_url: str, raw: Any, connect: Connect) -> None:
    raw.acl_setuser("outboxkit-guest", enabled=True, passwords=["+pa55word"], keys=["mine:*"], commands=["+@all"])
    broker = await connect(f"redis://outboxkit-guest:pa55word@{redis_url.partition('//')[2]}")
    try:
        with pytest.raises(BrokerUnavailableError, match="grant the user"):
            await broker.streams("topic")
    finally:
        raw.acl_deluser("outboxkit-guest")


async def test_an_absent_server_is_reported_at_once_without_the_password(connect: Connect) -> None:
    broker = await connect("redis://user:pa55word@127.0.0.1:1/3")
    started = anyio.current_time()
    with pytest.raises(BrokerUnavailableError, match=r"redis://127\.0\.0\.1:1/3 .*check that it runs") as caught:
        await broker.append([Append(ORIGIN, Entries(new_stream()))])
    assert anyio.current_time() - started < 2.0
    assert "pa55word" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("redis://:pa55word@host?prefix=a b", "prefix 'a b'"),
        ("redis://:pa55word@host?prefix=", "prefix ''"),
        ("redis://:pa55word@host?retry_on_timeout=true", "unknown option 'retry_on_timeout'"),
        ("redis://:pa55word@host?ssl_ca_certs=/ca.pem", "unknown option 'ssl_ca_certs'"),
        ("redis://:pa55word@host?db=one", "'db'"),
        ("rediss://:pa55word@host?ssl_cert_reqs=maybe", "maybe"),
        ("redis://:pa55word@host:port", "percent-encoded"),
        ("redis://:pa55#word@host", "cannot be read"),
        ("redis://:1#pa55word@host", "percent-encode"),
        ("redis://:1/pa55word@host", "percent-encode"),
        ("redis://:1?pa55word@host", "encoded as %3F"),
        ("redis://:pa55word@host/name", "database number"),
        ("http://:pa55word@host", "redis://"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(url: str, named: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RedisBroker(url)
    assert named in str(caught.value)
    assert "pa55" not in str(caught.value)


def test_rediss_means_tls_with_its_options() -> None:
    certificates = ssl.get_default_verify_paths().openssl_cafile
    broker = RedisBroker(f"rediss://user:pa%2F55@host:7000/2?ssl_ca_certs={certificates}&prefix=mine")
    inside: Any = broker
    connection = inside._open_client._node._redis.connection_pool.make_connection()
    assert type(connection).__name__ == "SSLConnection"
    assert (connection.host, connection.port, connection.db, connection.password) == ("host", 7000, 2, "pa/55")
    assert connection.ca_certs == certificates


async def test_tls_carries_everything_and_an_unknown_certificate_is_refused(
    connect: Connect, redis_url: str, tmp_path: Path
) -> None:
    authority: Any = trustme.CA()  # pyOpenSSL, which its annotations name, is not needed
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    stream = new_stream()
    async with TCPProxy(redis_url, tls).running() as proxy:
        stranger = await connect(proxy.url)
        with pytest.raises(BrokerUnavailableError, match=r"(?i)certificate"):
            await stranger.last([stream])
        broker = await connect(f"{proxy.url}?ssl_ca_certs={tmp_path}/authority.pem")
        await filled(broker, stream, [1, 2])
        await broker.subscribe("group", stream, ORIGIN)
        assert majors_of(await read_all(broker, "group", "reader", [stream])) == [1, 2]
        await broker.aclose()
        await stranger.aclose()


def _readers(raw: Any, stream: Stream) -> set[str]:
    return {reader["name"].decode() for reader in raw.xinfo_consumers(key(stream), "group")}


async def _elapsed(raw: Any, since: tuple[int, int]) -> int:
    """Return the microseconds since then by the server's clock."""
    seconds, micros = raw.time()
    passed: int = (seconds - since[0]) * 1_000_000 + micros - since[1]
    return passed


async def _read_for_ever(broker: RedisBroker, stream: Stream) -> None:
    while True:
        await broker.read("group", "reader", [stream], limit=1, wait_seconds=30.0)


async def _read_until_closed(broker: RedisBroker, stream: Stream) -> None:
    with pytest.raises(BrokerUnavailableError, match="was closed"):
        await _read_for_ever(broker, stream)


async def _blocked(raw: Any) -> int:
    return int(raw.info("clients")["blocked_clients"])


async def _count_clients(raw: Any) -> int:
    return len(raw.client_list())


@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile"])
@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_a_file_for_tls_that_cannot_be_used_is_told_when_opening_and_not_waited_for(
    tmp_path: Path, option: str, content: str | None
) -> None:
    file = tmp_path / "file.pem"
    if content is not None:
        file.write_text(content)
    broker = RedisBroker(f"rediss://user:secret@localhost:1?{option}={file}")
    with pytest.raises(ConfigurationError) as told:
        await broker.open()
    assert str(told.value).startswith(f"broker URL rediss://localhost:1: no TLS with {option}={file}: ")
