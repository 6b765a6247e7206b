"""The relay's saved progress: how far it read the log, and the broker's last position of each stream."""

from outboxkit.message import ORIGIN, Position, Stream
from outboxkit.store import Progress
from outboxkit_postgres.link import Link
from outboxkit_postgres.names import Names

_CURSOR = "SELECT major, minor FROM {cursor}"

_STREAMS = "SELECT topic, partition, major, minor FROM {stream}"

_SAVE = """
    WITH saved AS (
        INSERT INTO {cursor} VALUES (1, $1, $2)
        ON CONFLICT (id) DO UPDATE SET major = excluded.major, minor = excluded.minor
    )
    INSERT INTO {stream} SELECT * FROM unnest($3::text[], $4::integer[], $5::bigint[], $6::bigint[])
    ON CONFLICT (topic, partition) DO UPDATE SET major = excluded.major, minor = excluded.minor
"""


class ProgressTables:
    """The statements on the progress of one source's relay; each takes the connection it runs on."""

    def __init__(self, names: Names, source: str) -> None:
        self._sql = names.sql
        self._source = source

    async def load(self, link: Link) -> Progress:
        """See `outboxkit.store.Store.progress`."""
        cursor = await link.fetch(self._sql(_CURSOR))
        streams = await link.fetch(self._sql(_STREAMS))
        last = {Stream(topic, partition, self._source): Position(major, minor) for topic, partition, major, minor in streams}
        return Progress(Position(*cursor[0]) if cursor else ORIGIN, last)

    async def save(self, link: Link, progress: Progress) -> None:
        """See `outboxkit.store.Store.save_progress`."""
        # In one order, as two relays save at the same time.
        last = sorted((stream.topic, stream.partition, *at) for stream, at in progress.last.items())
        columns = zip(*last, strict=True) if last else ((), (), (), ())
        await link.fetch(self._sql(_SAVE), *progress.cursor, *(list(column) for column in columns))
