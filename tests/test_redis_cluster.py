"""What the Redis broker does about a cluster's own ways: slots, redirections, nodes that are away."""

import collections
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
import trustme
from redis import exceptions
from redis.crc import key_slot

from outboxkit.broker import Append
from outboxkit.errors import BrokerUnavailableError, GroupMissingError, StreamConflictError
from outboxkit.message import ORIGIN, Delivery, Position, Stream
from outboxkit.testing.redis_server import RedisServer
from outboxkit.testing.streams import chained, filled, majors_of, new_entries, new_stream, pending_all, raised, read_all, until
from outboxkit_redis import RedisBroker, cluster_reading
from outboxkit_redis.node import Node
from tests.redis_cluster import RedisCluster
from tests.tcp_proxy import TCPProxy

Connect = Callable[[str], Awaitable[RedisBroker]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Open brokers that are closed at the test's end, however it ends."""
    async with AsyncExitStack() as brokers:

        async def connect(url: str) -> RedisBroker:
            broker = await brokers.enter_async_context(aclosing(RedisBroker(url)))
            await broker.open()
            return broker

        yield connect


@pytest.fixture
async def broker(connect: Connect, redis_cluster: RedisCluster) -> RedisBroker:
    return await connect(redis_cluster.url)


@pytest.fixture
def own_cluster(redis_binary: str) -> Iterator[RedisCluster]:
    """A cluster whose nodes a test may kill; the others go on serving."""
    with RedisCluster(redis_binary, full_coverage=False) as cluster:
        yield cluster


def key(stream: Stream) -> str:
    return f"outboxkit:{{{stream.topic}:{stream.partition}}}:{stream.source}"


def one_on_each(cluster: RedisCluster) -> list[Stream]:
    """Return new streams, one on each of the cluster's masters, in their order."""
    found: dict[int, Stream] = {}
    while len(found) < len(cluster.servers):
        stream = new_stream()
        found.setdefault(cluster.server_of(key(stream)).port, stream)
    return [found[server.port] for server in cluster.servers]


def moving(cluster: RedisCluster, stream: Stream) -> tuple[int, RedisServer, RedisServer]:
    """Set the slot of a stream up for migration; returns it with its source and its target."""
    slot, source = key_slot(key(stream).encode()), cluster.server_of(key(stream))
    target = next(server for server in cluster.servers if server is not source)
    cluster.begin_to_move(slot, source, target)
    return slot, source, target


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Node]:
    """The nodes that were sent something, once for each round trip."""
    sent: list[Node] = []
    answers: Any = Node.answers

    async def counted(node: Node, commands: Sequence[Any], **settings: Any) -> Any:
        sent.append(node)
        return await answers(node, commands, **settings)

    monkeypatch.setattr(Node, "answers", counted)
    return sent


# Slots


async def test_a_topic_is_spread_over_the_masters_by_its_partitions(broker: RedisBroker, redis_cluster: RedisCluster) -> None:
    topic = new_stream().topic
    streams = [new_stream(partition, topic=topic) for partition in range(8)]
    await broker.announce(streams)
    await broker.append([Append(stream, ORIGIN, new_entries(stream, [1])) for stream in streams])
    names = {name for server in redis_cluster.servers for name in redis_cluster.ask(server, "KEYS", "*")}
    assert names == {f"outboxkit:{topic}:streams".encode(), *(key(stream).encode() for stream in streams)}
    shares = collections.Counter(redis_cluster.server_of(key(stream)).port for stream in streams)
    assert len(shares) == 3
    assert max(shares.values()) <= 4
    assert list(await broker.streams(topic)) == streams


async def test_streams_are_appended_and_read_in_one_round_trip_for_each_node(
    broker: RedisBroker, redis_cluster: RedisCluster, calls: list[Node]
) -> None:
    streams = one_on_each(redis_cluster) + one_on_each(redis_cluster)
    for stream in streams:
        await broker.subscribe("group", stream, ORIGIN)
    calls.clear()
    await broker.append([Append(stream, ORIGIN, new_entries(stream, [1])) for stream in streams])
    assert len(calls) == len(set(calls)) == 3
    calls.clear()
    assert len(await broker.read("group", "reader", streams, limit=100, wait_seconds=1.0)) == 6
    assert len(calls) == len(set(calls)) == 3


async def test_waiting_on_many_streams_keeps_the_connections(redis_cluster: RedisCluster, connect: Connect) -> None:
    broker = await connect(f"{redis_cluster.url}?client_name=mine")
    streams = [new_stream() for _ in range(12)]
    for stream in streams:
        await broker.subscribe("group", stream, ORIGIN)

    async def woken(major: int) -> None:
        stream = streams[major % len(streams)]
        found = list[Delivery]()

        async def wait() -> None:
            found.extend(await broker.read("group", "reader", streams, limit=100, wait_seconds=30.0))

        async with anyio.create_task_group() as waiting:
            waiting.start_soon(wait)
            await until(lambda: _blocked(redis_cluster), lambda count: count == len(streams))
            last = (await broker.last([stream]))[stream]
            await filled(broker, stream, [major], expected=last)
        assert majors_of(found) == [major]

    for major in range(1, 25):
        await woken(major)
    before = _ids(redis_cluster)
    for major in range(25, 49):
        await woken(major)
    assert _ids(redis_cluster) == before
    assert await _blocked(redis_cluster) == 0


async def test_waiting_needs_no_right_to_end_others_waits(redis_cluster: RedisCluster, connect: Connect) -> None:
    users = ("ACL", "SETUSER", "outboxkit-guest", "on", ">pa55word", "~*", "&*", "+@all", "-client")
    for server in redis_cluster.servers:
        redis_cluster.ask(server, *users)
    try:
        broker = await connect(redis_cluster.url.replace("//", "//outboxkit-guest:pa55word@"))
        streams = one_on_each(redis_cluster)
        for stream in streams:
            await broker.subscribe("group", stream, ORIGIN)
        for major in (1, 2):
            found = list[Delivery]()

            async def wait(found: list[Delivery] = found) -> None:
                found.extend(await broker.read("group", "reader", streams, limit=100, wait_seconds=30.0))

            with anyio.fail_after(10.0):
                async with anyio.create_task_group() as waiting:
                    waiting.start_soon(wait)
                    await until(lambda: _blocked(redis_cluster), lambda count: count == len(streams))
                    await filled(broker, streams[0], [major], expected=Position(major - 1, 0))
                    waiting.cancel_scope.deadline = anyio.current_time() + 0.4  # nothing is waited for in vain
            assert majors_of(found) == [major]
    finally:
        for server in redis_cluster.servers:
            redis_cluster.ask(server, "ACL", "DELUSER", "outboxkit-guest")


async def test_streams_that_are_too_many_to_be_waited_for_are_looked_at_again_and_again(
    broker: RedisBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_reading, "MOST_WAITS", 2)
    streams = [new_stream() for _ in range(6)]
    for stream in streams:
        await broker.subscribe("group", stream, ORIGIN)
    for stream in streams:
        found = list[Delivery]()

        async def wait(found: list[Delivery] = found) -> None:
            found.extend(await broker.read("group", "reader", streams, limit=100, wait_seconds=30.0))

        with anyio.fail_after(5.0):
            async with anyio.create_task_group() as waiting:
                waiting.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                await filled(broker, stream, [1])
        assert [delivery.stream for delivery in found] == [stream]


async def test_hundreds_of_streams_on_one_node_can_be_waited_for(broker: RedisBroker, redis_cluster: RedisCluster) -> None:
    topic = new_stream().topic
    streams = [new_stream(topic=topic, source=f"writer-{number}") for number in range(200)]
    for stream in streams:
        await broker.subscribe("group", stream, ORIGIN)
    found = list[Delivery]()

    async def wait() -> None:
        found.extend(await broker.read("group", "reader", streams, limit=1000, wait_seconds=30.0))

    with anyio.fail_after(10.0):
        async with anyio.create_task_group() as waiting:
            waiting.start_soon(wait)
            await until(lambda: _blocked(redis_cluster), lambda count: count == len(streams))
            await filled(broker, streams[150], [1])
    assert majors_of(found) == [1]


# Redirections


async def test_a_slot_that_was_moved_is_found_again(broker: RedisBroker, redis_cluster: RedisCluster) -> None:
    stream = new_stream()
    await filled(broker, stream, [1])
    await broker.subscribe("group", stream, ORIGIN)
    slot, source, target = moving(redis_cluster, stream)
    redis_cluster.move_keys(slot, source, target)
    redis_cluster.end_the_move(slot, target)
    await filled(broker, stream, [2], expected=Position(1, 0))
    found = await read_all(broker, "group", "reader", [stream])
    assert majors_of(found) == [1, 2]
    assert chained(found)


async def test_a_slot_on_the_move_is_written_and_read_at_both_ends(
    broker: RedisBroker, connect: Connect, redis_cluster: RedisCluster
) -> None:
    stream = new_stream()
    await filled(broker, stream, [1])
    await broker.subscribe("group", stream, ORIGIN)
    slot, source, target = moving(redis_cluster, stream)
    await filled(broker, stream, [2], expected=Position(1, 0))  # still at the source
    assert majors_of(await broker.read("group", "reader", [stream], limit=1, wait_seconds=0.0)) == [1]
    redis_cluster.move_keys(slot, source, target)
    for each in (broker, await connect(redis_cluster.url)):  # one that knew the source, and one that did not
        last = (await each.last([stream]))[stream]
        await filled(each, stream, [last.major + 1], expected=last)
        assert majors_of(await read_all(each, "group", "reader", [stream]))[-1] == last.major + 1
    assert majors_of(await pending_all(broker, "group", "reader", stream)) == [1, 2, 3, 4]
    await broker.ack("group", {stream: [Position(1, 0)]})
    assert majors_of(await broker.reclaim("group", "other", [stream], idle_seconds=0.0, limit=10)) == [2, 3, 4]
    redis_cluster.end_the_move(slot, target)
    assert majors_of(await broker.range(stream, after=ORIGIN, upto=None, limit=10)) == [1, 2, 3, 4]


async def test_a_stream_can_begin_in_a_slot_on_the_move(broker: RedisBroker, redis_cluster: RedisCluster) -> None:
    stream = new_stream()
    slot, source, target = moving(redis_cluster, stream)
    await broker.subscribe("group", stream, ORIGIN)
    await filled(broker, stream, [1, 2])
    assert majors_of(await broker.read("group", "reader", [stream], limit=10, wait_seconds=1.0)) == [1, 2]
    assert await broker.append([Append(stream, ORIGIN, new_entries(stream, [1, 2]))]) == [Position(2, 0)]
    assert redis_cluster.ask(source, "CLUSTER", "COUNTKEYSINSLOT", slot) == 0
    redis_cluster.end_the_move(slot, target)


async def test_a_waiting_read_goes_along_when_its_slot_moves(broker: RedisBroker, redis_cluster: RedisCluster) -> None:
    stream, other = new_stream(), new_stream()
    for each in (stream, other):
        await broker.subscribe("group", each, ORIGIN)
    found = list[Delivery]()

    async def wait() -> None:
        found.extend(await broker.read("group", "reader", [stream, other], limit=10, wait_seconds=30.0))

    with anyio.fail_after(10.0):
        async with anyio.create_task_group() as waiting:
            waiting.start_soon(wait)
            await until(lambda: _blocked(redis_cluster), lambda count: count == 2)
            slot, source, target = moving(redis_cluster, stream)
            redis_cluster.move_keys(slot, source, target)
            redis_cluster.end_the_move(slot, target)
            await filled(broker, stream, [1])
    assert majors_of(found) == [1]


# What gets lost on the way


async def test_what_lost_its_reply_is_sent_once_also_by_tls(redis_binary: str, connect: Connect, tmp_path: Path) -> None:
    authority: Any = trustme.CA()  # pyOpenSSL, which its annotations name, is not needed
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    stream = new_stream()
    with RedisCluster(redis_binary, masters=1) as cluster:
        async with TCPProxy(cluster.servers[0].url, tls).running() as proxy:
            port = urlsplit(proxy.url).port
            announce(cluster, cluster.servers[0], port)
            broker = await connect(f"rediss+cluster://127.0.0.1:{port}?ssl_ca_certs={tmp_path}/authority.pem")
            await broker.subscribe("group", stream, ORIGIN)
            proxy.losing = b"EVAL"
            with pytest.raises(BrokerUnavailableError, match=rf"the node 127\.0\.0\.1:{port} "):
                await broker.append([Append(stream, ORIGIN, new_entries(stream, [1, 2, 3]))])
            assert proxy.requests == 1
            proxy.losing = b"XREADGROUP"
            with pytest.raises(BrokerUnavailableError):
                await broker.read("group", "reader", [stream], limit=2, wait_seconds=1.0)
            assert proxy.requests == 2
            proxy.losing = b""
            assert await broker.last([stream]) == {stream: Position(3, 0)}
            assert majors_of(await pending_all(broker, "group", "reader", stream)) == [1, 2]
            await broker.aclose()


# Nodes that are away


async def test_what_is_on_other_masters_is_written_and_read_while_one_is_away(
    own_cluster: RedisCluster, connect: Connect
) -> None:
    broker = await connect(own_cluster.url)
    streams = one_on_each(own_cluster)
    dead, *living = streams
    for stream in streams:
        await broker.subscribe("group", stream, ORIGIN)
    port = own_cluster.servers[0].port
    own_cluster.servers[0].kill()
    batches = [Append(stream, ORIGIN, new_entries(stream, [1])) for stream in streams]
    with pytest.raises(BrokerUnavailableError, match=rf"the node 127\.0\.0\.1:{port} of the broker redis\+cluster://.*check"):
        await broker.append(batches)
    assert await broker.last(living) == dict.fromkeys(living, Position(1, 0))
    found = await broker.read("group", "reader", streams, limit=10, wait_seconds=5.0)
    assert {delivery.stream for delivery in found} == set(living)
    started = anyio.current_time()
    assert list(await broker.read("group", "reader", streams, limit=10, wait_seconds=0.3)) == []
    assert 0.25 < anyio.current_time() - started < 3.0
    with pytest.raises(BrokerUnavailableError):
        await broker.read("group", "reader", [dead], limit=10, wait_seconds=0.0)
    own_cluster.servers[0].start()
    await until(lambda: _last_or_none(broker, dead), lambda last: last == {dead: ORIGIN})


async def test_a_lost_group_is_told_of_and_what_others_gave_meanwhile_comes_next(
    broker: RedisBroker, redis_cluster: RedisCluster
) -> None:
    first, *others = streams = one_on_each(redis_cluster)
    for stream in streams:
        await filled(broker, stream, [1])
    for stream in others:
        await broker.subscribe("group", stream, ORIGIN)
    for wait_seconds in (0.0, 0.1):
        await raised(GroupMissingError, broker.read("group", "reader", streams, limit=10, wait_seconds=wait_seconds))
    await broker.subscribe("group", first, ORIGIN)
    found = await broker.read("group", "reader", streams, limit=10, wait_seconds=1.0)
    assert {delivery.stream for delivery in found} == set(streams)


async def test_what_is_no_stream_is_a_conflict_that_names_its_key_and_node(
    broker: RedisBroker, redis_cluster: RedisCluster
) -> None:
    stream = new_stream()
    server = redis_cluster.server_of(key(stream))
    redis_cluster.ask(server, "SET", key(stream), "text")
    with pytest.raises(StreamConflictError, match=rf"{server.port} .*holds something else under 'outboxkit:{{{stream.topic}"):
        await broker.last([new_stream(), stream])


async def test_a_cluster_that_covers_too_little_says_so_and_is_used_again(redis_binary: str, connect: Connect) -> None:
    with RedisCluster(redis_binary) as cluster:
        broker = await connect(cluster.url)
        _, stream, _ = one_on_each(cluster)
        cluster.servers[0].kill()
        await until(lambda: _trouble(broker, stream), lambda text: "no primary serves some slots" in text)
        cluster.servers[0].start()
        await until(lambda: _trouble(broker, stream), lambda text: not text)


async def test_one_node_that_lives_is_enough_to_find_the_others(own_cluster: RedisCluster, connect: Connect) -> None:
    living = own_cluster.servers[2].port
    broker = await connect(f"redis+cluster://127.0.0.1:1,127.0.0.1:{living}")
    streams = one_on_each(own_cluster)
    assert await broker.last(streams) == dict.fromkeys(streams, ORIGIN)
    lonely = await connect("redis+cluster://user:pa55word@127.0.0.1:1,127.0.0.1:2")
    with pytest.raises(BrokerUnavailableError, match=r"the node 127\.0\.0\.1:2 of the broker .*check that it runs") as caught:
        await lonely.last(streams)
    assert "pa55word" not in str(caught.value)


async def test_a_scheme_that_does_not_fit_the_server_is_told(
    redis_url: str, redis_cluster: RedisCluster, connect: Connect
) -> None:
    single = await connect(redis_url.replace("redis://", "redis+cluster://"))
    with pytest.raises(BrokerUnavailableError, match=r"write redis:// in the broker's URL"):
        await single.last([new_stream()])
    node = await connect(redis_cluster.servers[0].url)
    many = [new_stream() for _ in range(100)]  # on all of the nodes, whatever their names' slots
    with pytest.raises(BrokerUnavailableError, match=r"write redis\+cluster:// in the broker's URL"):
        await node.last(many)
    with pytest.raises(BrokerUnavailableError, match=r"write redis\+cluster:// in the broker's URL"):
        await node.read("group", "reader", many, limit=10, wait_seconds=0.0)


async def test_a_wrong_password_is_reported_without_it(redis_cluster: RedisCluster, connect: Connect) -> None:
    broker = await connect(redis_cluster.url.replace("//", "//nobody:pa55word@"))
    with pytest.raises(BrokerUnavailableError, match="check the user and the password") as caught:
        await broker.last([new_stream()])
    assert "pa55word" not in f"{caught.value} {caught.value.__cause__!r} {vars(broker)}"


def announce(cluster: RedisCluster, server: RedisServer, port: int | None) -> None:
    """Have a node tell clients that it listens on another port."""
    with contextlib.suppress(exceptions.ResponseError):
        cluster.ask(server, "CONFIG", "SET", "cluster-announce-port", port)
    if cluster.ask(server, "CLUSTER", "SLOTS")[0][2][1] != port:
        pytest.skip("this server cannot be told while it runs that it is behind another port")


async def _blocked(cluster: RedisCluster) -> int:
    facts = (cluster.ask(server, "INFO", "clients").decode() for server in cluster.servers)
    return sum(int(text.split("blocked_clients:")[1].split()[0]) for text in facts)


def _ids(cluster: RedisCluster) -> set[tuple[int, str]]:
    """Return the connections by that name, by node."""
    lists = {server.port: cluster.ask(server, "CLIENT", "LIST").decode() for server in cluster.servers}
    return {(port, line.split()[0]) for port, text in lists.items() for line in text.splitlines() if "name=mine" in line}


async def _last_or_none(broker: RedisBroker, stream: Stream) -> Any:
    try:
        return await broker.last([stream])
    except BrokerUnavailableError:
        return None


async def _trouble(broker: RedisBroker, stream: Stream) -> str:
    try:
        await broker.last([stream])
    except BrokerUnavailableError as error:
        return str(error)
    return ""
