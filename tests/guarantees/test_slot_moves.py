"""Slots of a cluster that move under load: everything arrives once, each key in order, and nothing is taken for a loss."""

import anyio
from redis.crc import key_slot

from tests.databases import Place
from tests.guarantees.load import NUMBERS, PARTITIONS, everything_once, key_of, settled
from tests.redis_cluster import RedisCluster

ROUNDS = 2


async def test_slots_that_move_while_they_are_written_and_read_cost_nothing(place: Place, mortal_cluster: RedisCluster) -> None:
    def move(key: str) -> None:
        slot, source = key_slot(key.encode()), mortal_cluster.server_of(key)
        target = mortal_cluster.servers[(mortal_cluster.servers.index(source) + 1) % len(mortal_cluster.servers)]
        mortal_cluster.begin_to_move(slot, source, target)
        mortal_cluster.move_keys(slot, source, target)
        mortal_cluster.end_the_move(slot, target)

    async with everything_once(place, mortal_cluster.url) as (publisher, reader):
        for step in range(1, ROUNDS + 1):
            await settled(reader, NUMBERS * step // (ROUNDS + 2))
            for key in ("outboxkit:numbers:streams", *map(key_of, range(PARTITIONS))):
                await anyio.to_thread.run_sync(move, key)
    assert not publisher.observer.losses
    assert not publisher.observer.troubles, "the relay followed each move"
