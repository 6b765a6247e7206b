"""Dead letters: rows of the inbox that are dead or held."""

from collections.abc import Sequence

from outboxkit.letter import DeadLetter, Letters, Place
from outboxkit.message import Position, Stream, digest
from outboxkit_postgres.inbox import InboxTables
from outboxkit_postgres.link import Link, Row
from outboxkit_postgres.names import Names

_FIND = """
    SELECT i.floor_id, i.major, i.minor, f."group", f.topic, f.partition, f.source, i.id, i.type, i.key, i.attempt, i.error,
        i.since, i.at, i.state = 'held', CASE WHEN $11::boolean THEN i.envelope END
    FROM {inbox} i JOIN {floor} f ON f.id = i.floor_id
    WHERE i.state IN ('dead', 'held') AND (i.floor_id, i.major, i.minor) > ($1::bigint, $2::bigint, $3::bigint)
        AND ($4::text[] IS NULL OR i.id = ANY($4::text[])
            OR i.floor_id::text || '-' || i.major::text || '-' || i.minor::text = ANY($4::text[]))
        AND ($5::text IS NULL OR f."group" = $5::text) AND ($6::text IS NULL OR i.type = $6::text)
        AND ($7::text IS NULL OR position($7::text IN i.error) > 0)
        AND ($8::float8 IS NULL OR i.at <= clock_timestamp() - make_interval(secs => $8::float8))
        AND ($9::float8 IS NULL OR i.at >= clock_timestamp() - make_interval(secs => $9::float8))
    ORDER BY i.floor_id, i.major, i.minor LIMIT $10::bigint
"""

# In one order, as others may change letters of the same floors at the same time.
_LOCK = "SELECT 1 FROM {floor} WHERE id = ANY($1::bigint[]) ORDER BY id FOR NO KEY UPDATE"

# At REPEATABLE READ and above, who waited for a lock goes on with what was to be seen before, unless the row has changed: that
# is a conflict, and it runs again. Without one it would park a message for ever, behind a letter that is discarded by then.
_TOUCH = "UPDATE {floor} SET ragged = ragged WHERE id = ANY($1::bigint[])"

# Looked up one by one, as there may be very many others; nobody moves them meanwhile, as we hold their floors.
_THESE = """
    WITH these AS MATERIALIZED (
        SELECT DISTINCT i.* FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS p (floor_id, major, minor), LATERAL (
            SELECT i.ctid AS place, i.floor_id, i.major, i.minor, i.key FROM {inbox} i
            WHERE i.floor_id = p.floor_id AND i.major = p.major AND i.minor = p.minor AND i.state IN ('dead', 'held')
            LIMIT 1) i)
"""

# Whose turn it is within a key shows afterwards.
_REVIVE = f"""{_THESE}
    UPDATE {{inbox}} i SET state = CASE WHEN i.key IS NULL THEN 'retry' ELSE 'parked' END,
        due_at = CASE WHEN i.key IS NULL THEN clock_timestamp() END, attempt = 0, alone = true, at = clock_timestamp()
    FROM these WHERE i.ctid = these.place RETURNING i.floor_id, i.key
"""

_LEAVE = f"""{_THESE}
    UPDATE {{inbox}} i SET state = 'exported', envelope = NULL, error = NULL, at = clock_timestamp()
    FROM these WHERE i.ctid = these.place RETURNING i.floor_id, i.key
"""

_DISCARD = f"""{_THESE}, gone AS (
        DELETE FROM {{inbox}} i USING these, {{floor}} f
        WHERE i.ctid = these.place AND f.id = i.floor_id AND (i.major, i.minor) <= (f.major, f.minor)
    ), settled AS (
        UPDATE {{inbox}} i SET state = 'settled', alone = false, since = NULL, at = NULL, error = NULL, envelope = NULL,
            id = NULL, type = NULL, key = NULL
        FROM these, {{floor}} f
        WHERE i.ctid = these.place AND f.id = i.floor_id AND (i.major, i.minor) > (f.major, f.minor)
    )
    SELECT floor_id, key FROM these
"""

_RESTORE = """
    UPDATE {inbox} SET state = $4, envelope = $5, error = $6, at = $7, attempt = $8
    WHERE floor_id = $1 AND major = $2 AND minor = $3 AND state = 'exported' AND digest = $9
    RETURNING floor_id, key
"""


class LetterTables:
    """The statements on dead letters; each method takes the connection it runs on, those that change in a transaction."""

    def __init__(self, names: Names, inbox: InboxTables) -> None:
        self._sql = names.sql
        self._inbox = inbox

    async def find(self, link: Link, which: Letters, after: str | None, limit: int, *, envelopes: bool) -> Sequence[DeadLetter]:
        """See `outboxkit.letter.LetterStore.letters`."""
        place = Place(0, Position(-1, -1)) if after is None else Place.of(after)
        chosen = (None if which.names is None else list(which.names), which.group, which.type, which.error)
        ages = (which.older_seconds, which.younger_seconds)
        values = (place.floor_id, *place.position, *chosen, *ages, limit, envelopes)
        return [_letter(row) for row in await link.fetch(self._sql(_FIND), *values)]

    async def revive(self, link: Link, refs: Sequence[str]) -> int:
        """See `outboxkit.letter.LetterStore.revive`."""
        return await self._change(link, _REVIVE, refs)

    async def discard(self, link: Link, refs: Sequence[str], *, exported: bool) -> int:
        """See `outboxkit.letter.LetterStore.discard`."""
        return await self._change(link, _LEAVE if exported else _DISCARD, refs)

    async def restore(self, link: Link, letters: Sequence[DeadLetter]) -> Sequence[bool]:
        """See `outboxkit.letter.LetterStore.restore`."""
        await self._lock(link, [Place.of(letter.ref) for letter in letters])
        done: list[bool] = []
        for letter in letters:
            place, envelope = Place.of(letter.ref), letter.envelope or b""
            values = ("held" if letter.holds else "dead", envelope, self._inbox.storable(letter.error), letter.died_at)
            where = (place.floor_id, *place.position)
            back = await link.fetch(self._sql(_RESTORE), *where, *values, letter.attempts, digest(envelope))
            await self._line_up(link, back)
            done.append(bool(back))
        return done

    async def _change(self, link: Link, statement: str, refs: Sequence[str]) -> int:
        if not refs:
            return 0
        places = [Place.of(ref) for ref in refs]
        await self._lock(link, places)
        columns = zip(*((place.floor_id, *place.position) for place in places), strict=True)
        changed = await link.fetch(self._sql(statement), *map(list, columns))
        await self._line_up(link, changed)
        return len(changed)

    async def _line_up(self, link: Link, changed: Sequence[Row]) -> None:
        keys: dict[int, set[str]] = {}
        for floor_id, key in changed:
            if key is not None:
                keys.setdefault(floor_id, set()).add(key)
        for floor_id, of_floor in keys.items():
            await self._inbox.waiting.line_up(link, floor_id, of_floor)

    async def _lock(self, link: Link, places: Sequence[Place]) -> None:
        floors = sorted({place.floor_id for place in places})
        await link.fetch(self._sql(_LOCK), floors)
        await link.fetch(self._sql(_TOUCH), floors)


def _letter(row: Row) -> DeadLetter:
    floor_id, major, minor, group, topic, partition, source, id, type, key, attempt, error, since, at, holds, envelope = row
    return DeadLetter(
        ref=str(Place(floor_id, Position(major, minor))),
        group=group,
        stream=Stream(topic, partition, source),
        position=Position(major, minor),
        id=id,
        type=type,
        key=key,
        attempts=attempt,
        error=error,
        failed_at=since,
        died_at=at,
        holds=holds,
        envelope=envelope,
    )
