"""Streams in a cluster: their keys, on which nodes they are, and who waits for them."""

from redis.crc import key_slot

from outboxkit.message import Stream
from outboxkit.testing.redis_server import RedisServer
from outboxkit.testing.streams import new_stream
from tests.redis_cluster import RedisCluster


def key(stream: Stream) -> str:
    """Return the name of a stream's key."""
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


async def blocked(cluster: RedisCluster) -> int:
    """Return how many connections wait for entries."""
    facts = (cluster.ask(server, "INFO", "clients").decode() for server in cluster.servers)
    return sum(int(text.split("blocked_clients:")[1].split()[0]) for text in facts)
