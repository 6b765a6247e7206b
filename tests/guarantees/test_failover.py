"""A master that is killed under load, with entries that its replica never got: everything arrives once, each key in order."""

import anyio

from outboxkit.testing.redis_server import RedisServer
from tests.databases import Place
from tests.guarantees.load import PARTITIONS, everything_once, key_of, settled
from tests.redis_cluster import RedisCluster
from tests.redis_sentinel import WatchedRedis, ask
from tests.services import Publisher
from tests.waiting import until

BEFORE, UNREPLICATED = 50, 50


async def test_a_failover_by_sentinels_that_loses_entries_costs_nothing(place: Place, redis_binary: str) -> None:
    with WatchedRedis(redis_binary) as watched:
        async with everything_once(place, watched.url) as (publisher, reader):
            await settled(reader, BEFORE)
            master, replica = watched.master, watched.replica
            cut_off(replica, master)
            await settled(reader, BEFORE + UNREPLICATED)
            master.kill()
            replica.resume()
            await until(lambda: publisher.observer.losses, seconds=60.0)
            # The relay goes by the newest of what they say; one that was not asked for its vote hears of it later.
            await until(lambda: {watched.named_by(sentinel) for sentinel in watched.sentinels}, {replica.port}.__eq__)
            # The old one comes back empty, and takes itself for the master until a Sentinel demotes it.
            await anyio.to_thread.run_sync(master.restart)


async def test_a_failover_in_a_cluster_that_loses_entries_costs_nothing(place: Place, redis_binary: str) -> None:
    with RedisCluster(redis_binary, replicas=1) as cluster:
        async with everything_once(place, cluster.url) as (publisher, reader):
            await settled(reader, BEFORE)
            master = cluster.server_of(key_of(0))
            replica = cluster.replica_of(master)
            cut_off(replica, master)
            await settled(reader, BEFORE + UNREPLICATED)
            master.kill()
            replica.resume()
            await until(lambda: publisher.observer.losses, seconds=60.0)
            assert cluster.server_of(key_of(0)) is replica
            await anyio.to_thread.run_sync(master.restart)
        lost = lost_partitions(publisher)
        served = {partition for partition in range(PARTITIONS) if cluster.server_of(key_of(partition)) is replica}
        assert 0 in lost
        assert lost <= served, "a loss was seen where there was none"


async def test_a_master_of_a_cluster_that_comes_back_empty_costs_nothing(place: Place, mortal_cluster: RedisCluster) -> None:
    async with everything_once(place, mortal_cluster.url) as (publisher, reader):
        await settled(reader, BEFORE)
        server = mortal_cluster.server_of(key_of(0))
        server.kill()
        await noticed(publisher)
        await anyio.to_thread.run_sync(server.restart)
        # Also of a stream whose events were all noted before it was killed.
        here = {partition for partition in range(PARTITIONS) if mortal_cluster.server_of(key_of(partition)) is server}
        await until(lambda: lost_partitions(publisher), here.__eq__)


def lost_partitions(publisher: Publisher) -> set[int]:
    return {stream.partition for losses in publisher.observer.losses for stream in losses}


async def noticed(publisher: Publisher) -> None:
    """Wait until the relay meets trouble that it has not met yet."""
    before = len(publisher.observer.troubles)
    await until(lambda: len(publisher.observer.troubles) > before)


def cut_off(replica: RedisServer, master: RedisServer) -> None:
    """Let nothing that is written from now on come to the replica."""
    replica.pause()  # so that it cannot connect again
    ask(master.port, "CLIENT", "KILL", "TYPE", "replica")
