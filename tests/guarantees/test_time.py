"""Several processes that publish what is due and die while they do: each event once, none early, what is cancelled never."""

import asyncio
import collections
import itertools
import os
import random
import signal
import statistics
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from outboxkit import App, Message, UnitOfWork
from outboxkit.message import Envelope
from outboxkit.testing import MemoryBroker
from tests.databases import Database, Place, database_at
from tests.guarantees.timekeeper import EVERY_SECONDS, Alarm, timekeeper
from tests.services import QUICK
from tests.waiting import until

ROOT = Path(__file__).parents[2]
PROCESSES = 3
DEATHS = 15

_SQLITE_NOW = "((julianday('now') - 2440587.5) * 86400.0)"


_TABLES = """
    CREATE TABLE rung (at bigint NOT NULL);
    CREATE TABLE wanted (id text NOT NULL, due_at double precision NOT NULL, seq bigint NOT NULL);
    CREATE TABLE came (id text NOT NULL, at double precision NOT NULL)
"""
_ON_SQLITE = f"""
    CREATE TRIGGER want AFTER INSERT ON outboxkit_later BEGIN INSERT INTO wanted VALUES (new.id, new.due_at, new.seq)$ END;
    CREATE TRIGGER come AFTER INSERT ON outboxkit_outbox BEGIN INSERT INTO came VALUES (new.id, {_SQLITE_NOW})$ END
"""
_ON_POSTGRES = """
    CREATE FUNCTION want() RETURNS trigger LANGUAGE plpgsql AS '
        BEGIN INSERT INTO wanted VALUES (NEW.id::text, extract(epoch FROM NEW.due_at), NEW.seq)$ RETURN NULL$ END ';
    CREATE FUNCTION come() RETURNS trigger LANGUAGE plpgsql AS '
        BEGIN INSERT INTO came VALUES (NEW.id::text, extract(epoch FROM clock_timestamp()))$ RETURN NULL$ END ';
    CREATE TRIGGER want AFTER INSERT ON outboxkit_later FOR EACH ROW EXECUTE FUNCTION want();
    CREATE TRIGGER come AFTER INSERT ON outboxkit_outbox FOR EACH ROW EXECUTE FUNCTION come()
"""


def keep_record(database: Database, *, is_sqlite: bool) -> None:
    """Have the database itself note when events were written for later, and when they came to the outbox."""
    for statement in f"{_TABLES};{_ON_SQLITE if is_sqlite else _ON_POSTGRES}".split(";"):
        database.ask(statement.replace("$", ";"))


class Keepers:
    """Processes that keep the time, each replaced when it has died."""

    def __init__(self, place: Place, broker: str) -> None:
        self.arguments = (str(place), broker)
        self.deaths = 0
        self.seeds = iter(range(1000))

    async def keep(self) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}"}
        while True:
            words = ("-m", "tests.guarantees.timekeeper", *self.arguments, str(next(self.seeds)))
            process = await asyncio.create_subprocess_exec(sys.executable, *words, cwd=ROOT, env=environment)
            try:
                assert await process.wait() == -signal.SIGKILL
            except BaseException:
                if process.returncode is None:
                    process.kill()
                    with anyio.CancelScope(shield=True):
                        await process.wait()
                raise
            self.deaths += 1


class Alarms:
    """Publishes alarms for later, cancels some, and keeps the record of what it was told."""

    def __init__(self, app: App, rng: random.Random) -> None:
        self.app, self.rng = app, rng
        self.published: list[list[str]] = []
        """Those of one key that are due together, in order."""
        self.cancelled: set[str] = set()
        self.too_late: set[str] = set()

    async def publish(self, stop: anyio.Event) -> None:
        number = 0
        while not stop.is_set():
            key = f"key-{self.rng.randrange(5)}"
            at = datetime.now(UTC) + timedelta(seconds=self.rng.uniform(0.1, 2.0))
            async with self.app.unit_of_work() as uow:
                group = [uow.publish(Alarm(key, number + offset), at=at) for offset in range(3)]
                number += 3
                group_of_one = [uow.publish(Alarm(key, number), delay=self.rng.uniform(0.0, 1.0))]
                number += 1
            self.published += [group, group_of_one]
            await self.cancel_one()
            await anyio.sleep(self.rng.random() * 0.04)

    async def cancel_one(self) -> None:
        id = self.rng.choice(self.rng.choice(self.published[-40:]))
        if id in self.cancelled | self.too_late or self.rng.random() < 0.5:
            return
        way = self.rng.random()
        if way < 0.5:
            done = await self.app.cancel(id)
        else:
            try:
                async with self.app.unit_of_work() as uow:
                    done = await uow.cancel(id)
                    await anyio.sleep(self.rng.random() * 0.02)
                    if way < 0.7:
                        raise LookupError
            except LookupError:
                return
        (self.cancelled if done else self.too_late).add(id)


async def test_processes_that_die_publish_each_event_once_and_none_early(place: Place, tmp_path: Path) -> None:
    broker = f"sqlite:///{tmp_path}/broker.db"
    app, database = timekeeper(place, broker)
    database.create()
    await app.migrate()
    is_sqlite = isinstance(place, Path)
    keep_record(database, is_sqlite=is_sqlite)
    keepers, alarms = Keepers(place, broker), Alarms(app, random.Random(7))
    stop = anyio.Event()
    async with app.running(relay=False, consume=False), anyio.create_task_group() as keeping:
        for _ in range(PROCESSES):
            keeping.start_soon(keepers.keep)
        async with anyio.create_task_group() as publishing:
            publishing.start_soon(alarms.publish, stop)
            await until(lambda: keepers.deaths, lambda deaths: deaths >= DEATHS, seconds=90.0)
            stop.set()
        await until(lambda: database.column("SELECT 1 FROM outboxkit_later"), lambda waiting: not waiting, seconds=30.0)
        keeping.cancel_scope.cancel()
    came: list[tuple[str, float]] = database.ask("SELECT id, at FROM came")
    wanted = {id: (due_at, seq) for id, due_at, seq in database.ask("SELECT id, due_at, seq FROM wanted")}
    column = "id" if is_sqlite else "id::text"
    log = database.column(f"SELECT {column} FROM outboxkit_outbox WHERE type = 'alarm' ORDER BY {database.log_order}")
    published = [id for group in alarms.published for id in group]
    assert set(published) == wanted.keys()
    assert collections.Counter(log) == collections.Counter(set(published) - alarms.cancelled)
    assert alarms.cancelled
    assert alarms.too_late
    early = {id: due_at - at for id, at in came if id in wanted and at < (due_at := wanted[id][0]) - 1e-4}
    assert early == {}
    place_of = {id: number for number, id in enumerate(log)}
    for group in alarms.published:
        places = [place_of[id] for id in group if id in place_of]
        assert places == sorted(places), "events of a key that were due together changed places"
    check_periods(database, column)


def check_periods(database: Database, column: str) -> None:
    rung: list[int] = database.column("SELECT at FROM rung ORDER BY at")
    assert len(set(rung)) == len(rung), "called twice for a moment"
    assert all(at % round(EVERY_SECONDS * 1000) == 0 for at in rung)
    gaps = [after - before for before, after in itertools.pairwise(rung)]
    assert len(rung) > DEATHS
    assert max(gaps) < 8000, "nobody called for a long time"
    envelopes = database.column("SELECT envelope FROM outboxkit_outbox WHERE type = 'rang'")
    told = [
        msgspec.json.decode(bytes(Envelope.decode(envelope).data), type=dict[str, datetime])["moment"] for envelope in envelopes
    ]
    assert sorted(round(moment.timestamp() * 1000) for moment in told) == rung


@pytest.mark.parametrize("times", [20])
async def test_an_idle_app_is_on_time_within_50_ms(place: Place, times: int) -> None:
    """From the moment it is due to the handler's own transaction, by the database's clock."""
    database = database_at(place, "punctual")
    database.create()
    app = App("punctual", store=database.url, broker=MemoryBroker(), settings=QUICK)
    handled: dict[str, float] = {}
    now = _SQLITE_NOW if isinstance(place, Path) else "extract(epoch FROM clock_timestamp())::float8"

    @app.consumes(Alarm)
    async def hear(alarm: Alarm, message: Message, uow: UnitOfWork) -> None:
        handled[message.id] = await _value(uow.connection, f"SELECT {now}")

    async def heard(id: str) -> None:
        await until(lambda: id in handled)

    await app.migrate()
    keep_record(database, is_sqlite=isinstance(place, Path))
    async with app:
        for number in range(times):
            async with app.unit_of_work() as uow:
                id = uow.publish(Alarm("key", number), delay=0.1 + number * 0.007)
            await heard(id)
    due: dict[str, Any] = dict(database.ask("SELECT id, due_at FROM wanted"))
    came: dict[str, Any] = dict(database.ask("SELECT id, at FROM came"))
    published = statistics.median(came[id] - due[id] for id in due)
    arrived = statistics.median(handled[id] - due[id] for id in due)
    print(f"published {published * 1000:.1f} ms after it was due, handled {arrived * 1000:.1f} ms, in the median of {times}")  # noqa: T201
    assert all(handled[id] >= due[id] - 1e-4 for id in due)
    assert published < 0.05
    assert arrived < 0.05


async def _value(connection: Any, query: str) -> float:
    if hasattr(connection, "fetchval"):
        return float(await connection.fetchval(query))
    (row,) = await connection.execute_fetchall(query)
    return float(row[0])
