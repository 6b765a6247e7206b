"""A million messages through two services that keep what is settled for 10 s: tables, streams and memory stay flat.

``OUTBOXKIT_TEST_SPACE_MESSAGES`` sets another number.
"""

import os
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest
import redis

from tests.databases import Database, Place, SQLiteDatabase, database_at
from tests.guarantees.flood import SETTINGS, adding, drawing
from tests.waiting import until

MESSAGES = int(os.environ.get("OUTBOXKIT_TEST_SPACE_MESSAGES", "1000000"))
AHEAD = 20_000
VACUUM_MESSAGES = 50_000
"""After how many messages Postgres is vacuumed: by itself it is once a minute, which is more or less of the work by chance."""
KEPT_SECONDS = 10.0
"""How long a row is kept."""
MEGABYTE = 1024 * 1024
ROOT = Path(__file__).parents[2]
STREAMS = SETTINGS.partitions["numbers"]


class Sample(NamedTuple):
    """What there is at one moment; sizes in bytes."""

    at: float
    """In seconds."""
    settled: int
    rows: int
    entries: int
    inbox_rows: int
    publisher_bytes: int
    consumer_bytes: int
    memory: int


@contextmanager
def running(role: str, place: Place, broker: str, allowed: Path) -> Generator[subprocess.Popen[bytes], None, None]:
    command = [sys.executable, "-m", "tests.guarantees.flood", role, str(place), broker, str(MESSAGES), str(allowed)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}"}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def memory_of(process: subprocess.Popen[bytes]) -> int:
    """Return the resident memory of a process; fails when it has ended."""
    assert process.poll() is None
    status = Path(f"/proc/{process.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))


def size_of(database: Database) -> int:
    """Return what a service's tables take, indexes and the write-ahead log of a file included."""
    if isinstance(database, SQLiteDatabase):
        return sum(path.stat().st_size for path in database.path.parent.glob(f"{database.path.name}*"))
    (total,) = database.column(
        "SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c "
        "WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r'"
    )
    return int(total)


class Watch:
    """Looks at a long run from outside."""

    def __init__(self, place: Place, broker: str, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        self.publisher, self.consumer = database_at(place, "drawing"), database_at(place, "adding")
        self._processes = processes
        driver: Any = redis.Redis  # its annotations are incomplete
        self._redis = driver.from_url(broker)
        self.samples: list[Sample] = []

    def entries(self) -> int:
        lengths: list[int] = [self._redis.xlen(key) for key in self._redis.scan_iter("outboxkit:numbers:*:drawing")]
        return sum(lengths)

    def look(self) -> Sample:
        sample = Sample(
            at=time.monotonic(),
            settled=self.consumer.column("SELECT count FROM total")[0],
            rows=self.publisher.column("SELECT count(*) FROM outboxkit_outbox")[0],
            entries=self.entries(),
            inbox_rows=self.consumer.column("SELECT count(*) FROM outboxkit_inbox")[0],
            publisher_bytes=size_of(self.publisher),
            consumer_bytes=size_of(self.consumer),
            memory=max(map(memory_of, self._processes)),
        )
        self.samples.append(sample)
        return sample

    def peak(self, what: str, begin: float, end: float) -> int:
        """Return the highest value between two parts of the run, by what was settled."""
        values: list[int] = [getattr(sample, what) for sample in self._between(begin, end)]
        return max(values)

    def pace(self, begin: float, end: float) -> int:
        """Return how many messages were settled between two parts of the run in the time that a row is kept, at most."""
        among = self._between(begin, end)
        return max(
            last.settled - next(first.settled for first in self.samples if first.at >= last.at - KEPT_SECONDS) for last in among
        )

    def vacuum(self) -> None:
        """Do what autovacuum does, by the work that was done and not by the clock."""
        for database in (self.publisher, self.consumer):
            if not isinstance(database, SQLiteDatabase):
                for table in database.column("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"):
                    database.ask(f"VACUUM {table}")

    def _between(self, begin: float, end: float) -> Sequence[Sample]:
        return [sample for sample in self.samples if begin * MESSAGES <= sample.settled <= end * MESSAGES]


@pytest.fixture
async def prepared(place: Place, redis_url: str) -> Place:
    for app in (drawing(place, redis_url), adding(place, redis_url)):
        database_at(place, app.name).create()
        await app.migrate()
    consumer = database_at(place, "adding")
    consumer.ask("CREATE TABLE total (count BIGINT NOT NULL, sum BIGINT NOT NULL)")
    consumer.ask("INSERT INTO total VALUES (0, 0)")
    return place


async def test_a_million_messages_leave_tables_streams_and_memory_flat(prepared: Place, redis_url: str, tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.write_text(str(AHEAD))
    with ExitStack() as stack:
        processes = [stack.enter_context(running(role, prepared, redis_url, allowed)) for role in ("draw", "add")]
        watch = Watch(prepared, redis_url, processes)
        with anyio.fail_after(900):
            vacuum_at = VACUUM_MESSAGES
            while (sample := watch.look()).settled < MESSAGES:
                allowed.write_text(str(sample.settled + AHEAD))
                if sample.settled >= vacuum_at:
                    vacuum_at = sample.settled + VACUUM_MESSAGES
                    watch.vacuum()
                await anyio.sleep(0.25)
        (total,) = watch.consumer.ask("SELECT count, sum FROM total")
        assert tuple(total) == (MESSAGES, MESSAGES * (MESSAGES + 1) // 2), "each once"
        # What is kept for a time is more where more is done in it, as when the machine has nothing else to do any more.
        faster = max(1.0, watch.pace(0.5, 1.0) / watch.pace(0.25, 0.5))
        for what in ("rows", "entries", "inbox_rows", "publisher_bytes", "consumer_bytes", "memory"):
            assert watch.peak(what, 0.5, 1.0) <= 1.5 * faster * watch.peak(what, 0.25, 0.5), (what, watch.samples[::20])
        assert watch.peak("memory", 0.0, 1.0) <= 150 * MEGABYTE
        await until(
            watch.look, lambda sample: (sample.rows, sample.entries, sample.inbox_rows) == (STREAMS, STREAMS, 0), seconds=40
        )
