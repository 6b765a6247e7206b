"""What the Redis broker does about a cluster's nodes: replies that are lost, nodes that are away, or are something else."""

import asyncio
import contextlib
import ssl
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import hiredis
import pytest
import trustme
from redis import exceptions

from outboxkit.broker import Append
from outboxkit.errors import BrokerUnavailableError, GroupMissingError, StreamConflictError
from outboxkit.message import ORIGIN, Position, Stream
from outboxkit.testing.redis_server import RedisServer
from outboxkit.testing.streams import filled, majors_of, new_entries, new_stream, pending_all, raised, until
from outboxkit_redis import RedisBroker, node, silence
from tests.cluster_streams import key, one_on_each
from tests.redis_brokers import Connect
from tests.redis_cluster import RedisCluster
from tests.serving import serving
from tests.tcp_proxy import TCPProxy


@pytest.fixture
async def broker(connect: Connect, redis_cluster: RedisCluster) -> RedisBroker:
    return await connect(redis_cluster.url)


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
                await broker.append([Append(ORIGIN, new_entries(stream, [1, 2, 3]))])
            assert proxy.requests == 1
            proxy.losing = b"XREADGROUP"
            with pytest.raises(BrokerUnavailableError):
                await broker.read("group", "reader", [stream], limit=2, wait_seconds=1.0)
            assert proxy.requests == 2
            proxy.losing = b""
            assert await broker.last([stream]) == {stream: Position(3, 0)}
            assert majors_of(await pending_all(broker, "group", "reader", stream)) == [1, 2]
            await broker.aclose()


async def test_what_is_on_other_masters_is_written_and_read_while_one_is_away(
    mortal_cluster: RedisCluster, connect: Connect
) -> None:
    broker = await connect(mortal_cluster.url)
    streams = one_on_each(mortal_cluster)
    dead, *living = streams
    for stream in streams:
        await broker.subscribe("group", stream, ORIGIN)
    port = mortal_cluster.servers[0].port
    mortal_cluster.servers[0].kill()
    batches = [Append(ORIGIN, new_entries(stream, [1])) for stream in streams]
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
    mortal_cluster.servers[0].start()
    await until(lambda: _last_or_none(broker, dead), lambda last: last == {dead: ORIGIN})


async def test_a_node_that_hangs_is_waited_for_once(
    mortal_cluster: RedisCluster, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await connect(mortal_cluster.url)
    streams = one_on_each(mortal_cluster)
    hanging, *living = streams
    for stream in streams:
        await broker.subscribe("group", stream, ORIGIN)
    monkeypatch.setattr(node, "REPLY_SECONDS", 3.0)
    mortal_cluster.servers[0].pause()
    with pytest.raises(BrokerUnavailableError, match=r"did not answer within 3 s"):
        await broker.append([Append(ORIGIN, new_entries(stream, [1])) for stream in streams])
    monkeypatch.setattr(silence, "SHORTEST_SECONDS", 3.0)
    with anyio.fail_after(2.0):
        with pytest.raises(BrokerUnavailableError, match=r"it has not been answering, and was not asked now; check that it"):
            await broker.last(streams)
        found = await broker.read("group", "reader", streams, limit=10, wait_seconds=5.0)
    assert {delivery.stream for delivery in found} == set(living)
    mortal_cluster.servers[0].resume()
    last = await until(lambda: _last_or_none(broker, hanging))
    assert last[hanging] in (ORIGIN, Position(1, 0)), "what it was sent before may have been done later"


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


async def test_a_cluster_that_covers_too_little_says_so_and_is_used_again(
    mortal_cluster: RedisCluster, connect: Connect
) -> None:
    broker = await connect(mortal_cluster.url)
    _, stream, _ = one_on_each(mortal_cluster)
    mortal_cluster.require_full_coverage(True)
    mortal_cluster.servers[0].kill()
    await until(lambda: _trouble(broker, stream), lambda text: "no primary serves some slots" in text)
    mortal_cluster.servers[0].start()
    await until(lambda: _trouble(broker, stream), lambda text: not text)


async def test_one_node_that_lives_is_enough_to_find_the_others(redis_cluster: RedisCluster, connect: Connect) -> None:
    living = redis_cluster.servers[2].port
    broker = await connect(f"redis+cluster://127.0.0.1:1,127.0.0.1:{living}")
    streams = one_on_each(redis_cluster)
    assert await broker.last(streams) == dict.fromkeys(streams, ORIGIN)
    lonely = await connect("redis+cluster://user:pa55word@127.0.0.1:1,127.0.0.1:2")
    with pytest.raises(BrokerUnavailableError, match=r"the node 127\.0\.0\.1:2 of the broker .*check that it runs") as caught:
        await lonely.last(streams)
    assert "pa55word" not in str(caught.value)


async def test_a_node_that_comes_back_without_its_memory_of_the_cluster_misleads_nobody(
    redis_binary: str, connect: Connect
) -> None:
    stream = new_stream()
    with RedisCluster(redis_binary, replicas=1) as cluster:
        forgetful = cluster.server_of(key(stream))
        replica, other = cluster.replica_of(forgetful), next(server for server in cluster.servers if server is not forgetful)
        knowing = await connect(f"redis+cluster://127.0.0.1:{forgetful.port}")
        await filled(knowing, stream, [1])
        await until(lambda: _copied(cluster, replica))
        cluster.kill_and_make_forget(forgetful)
        await until(lambda: _promoted(cluster, replica))
        forgetful.start()
        new = await connect(f"redis+cluster://127.0.0.1:{forgetful.port},127.0.0.1:{other.port}")
        for broker in (knowing, new):
            await until(partial(_last_or_none, broker, stream), lambda last: last == {stream: Position(1, 0)})
        assert cluster.ask(forgetful, "CLUSTER", "SLOTS") == []


async def test_a_node_that_is_cut_off_from_the_cluster_is_not_asked_for_ever_who_serves_what(
    redis_cluster: RedisCluster, connect: Connect
) -> None:
    """As a primary that the others have replaced, and do not reach: it answers clients, and still takes itself for one."""
    stream = new_stream()
    async with serving(_cut_off) as port:
        broker = await connect(f"redis+cluster://127.0.0.1:{port},127.0.0.1:{redis_cluster.servers[0].port}")
        await raised(BrokerUnavailableError, broker.last([stream]))
        assert await broker.last([stream]) == {stream: ORIGIN}


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


async def _cut_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    host, port = writer.get_extra_info("sockname")
    slots = f"*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n${len(host)}\r\n{host}\r\n:{port}\r\n$40\r\n{'0' * 40}\r\n"
    requests: Any = hiredis.Reader()
    while data := await reader.read(65536):
        requests.feed(data)
        while request := requests.gets():
            told = request == [b"CLUSTER", b"SLOTS"]
            writer.write(slots.encode() if told else b"-CLUSTERDOWN The cluster is down\r\n")


async def _copied(cluster: RedisCluster, replica: RedisServer) -> bool:
    return bool(cluster.ask(replica, "DBSIZE"))


async def _promoted(cluster: RedisCluster, replica: RedisServer) -> bool:
    return b"role:master" in cluster.ask(replica, "INFO", "replication")


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
