"""Periodic functions: called once for each moment, in one transaction with what they do."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import anyio
import msgspec
import pytest

from outboxkit import App, Backoff, Router, Settings, UnitOfWork, clock, event
from outboxkit.errors import ConfigurationError, HandlerSignatureError, StoreUnavailableError
from outboxkit.later import Period
from outboxkit.message import Envelope
from outboxkit.testing import MemoryBroker
from tests.databases import Place, database_at
from tests.services import QUICK, Recording
from tests.waiting import until

LONG = 86_400 * 365
"""A period of which none begins during a test, but for the one that a test makes pass."""


@event("report.due", topic="reports")
class ReportDue(msgspec.Struct, frozen=True):
    day: str = ""


class Listening(Recording):
    def __init__(self) -> None:
        super().__init__()
        self.failures: list[tuple[str, datetime, str]] = []

    def call_failed(self, name: str, moment: datetime, error: Exception, delay_seconds: float) -> None:
        super().call_failed(name, moment, error, delay_seconds)
        self.failures.append((name, moment, repr(error)))


class Reporting:
    """An app with periodic functions, and its database as seen from outside."""

    def __init__(self, place: Place, settings: Settings = QUICK) -> None:
        self.database = database_at(place, "reporting")
        self.database.create()
        self.observer = Listening()
        self.looks = 0
        """At periods, by all of its apps."""
        self.app = self.another(settings)

    def another(self, settings: Settings = QUICK) -> App:
        """Return the app as another process would have it."""
        app = App("reporting", store=self.database.url, broker=MemoryBroker(), settings=settings, observer=self.observer)
        store: Any = app.store
        look = store.period

        async def counted(name: str) -> Period:
            found: Period = await look(name)
            self.looks += 1
            return found

        store.period = counted
        return app

    @asynccontextmanager
    async def running(self, *apps: App) -> AsyncGenerator[None, None]:
        await self.app.migrate()
        async with anyio.create_task_group() as tasks:
            started = 0
            stop = anyio.Event()

            async def run(app: App) -> None:
                nonlocal started
                async with app:
                    started += 1
                    await stop.wait()

            for app in apps or (self.app,):
                tasks.start_soon(run, app)
            await until(lambda: started == len(apps or (self.app,)))
            try:
                yield
            finally:
                stop.set()

    def published(self) -> list[str]:
        query = f"SELECT envelope FROM outboxkit_outbox ORDER BY {self.database.log_order}"
        return [msgspec.json.decode(bytes(Envelope.decode(raw).data))["day"] for raw in self.database.column(query)]

    def back(self) -> None:
        """Make it so that all periodic functions were called last a long time ago."""
        is_sqlite = self.database.url.startswith("sqlite")
        self.database.ask(f"UPDATE outboxkit_period SET at = {'at - 1e8' if is_sqlite else 'at - make_interval(secs => 1e8)'}")

    def known(self) -> list[Any]:
        return self.database.ask("SELECT name, schedule FROM outboxkit_period ORDER BY name")

    async def begun(self, count: int = 1) -> None:
        """Wait until so many periodic functions are known."""
        await until(self.known, lambda known: len(known) == count)


@pytest.fixture
def reporting(place: Place) -> Reporting:
    return Reporting(place)


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_LOOK_SECONDS", 0.1)


async def test_a_function_is_called_once_for_each_moment(reporting: Reporting) -> None:
    calls: list[datetime] = []

    @reporting.app.publishes(ReportDue, every=0.2)
    async def report(uow: UnitOfWork, moment: datetime) -> ReportDue:
        calls.append(moment)
        return ReportDue(str(moment))

    async with reporting.running():
        await until(lambda: len(calls) >= 5)
    assert len(set(calls)) == len(calls)
    assert calls == sorted(calls)
    assert all((moment - datetime(1970, 1, 1, tzinfo=UTC)) % timedelta(seconds=0.2) == timedelta(0) for moment in calls)
    assert reporting.published() == [str(moment) for moment in calls]
    assert reporting.observer.failures == []
    assert reporting.observer.crashes == []


async def test_however_many_run_it_one_calls_for_a_moment(reporting: Reporting) -> None:
    calls: list[datetime] = []
    apps = [reporting.another() for _ in range(4)]
    for app in apps:

        @app.publishes(ReportDue, every=0.2)
        async def report(moment: datetime) -> ReportDue:
            calls.append(moment)
            await anyio.sleep(0.05)
            return ReportDue(str(moment))

    async with reporting.running(*apps):
        await until(lambda: len(reporting.published()) >= 8)
    assert len(set(reporting.published())) == len(reporting.published())
    assert len(set(calls)) == len(calls), "nobody even tried"


async def test_a_new_function_waits_for_its_first_moment(reporting: Reporting) -> None:
    calls: list[int] = []

    @reporting.app.publishes(ReportDue, every=LONG)
    async def yearly() -> None:
        calls.append(1)

    async with reporting.running():
        await reporting.begun()
        await _looked_again(reporting)
    assert calls == []


async def test_moments_that_were_missed_are_made_up_for_by_one_call(reporting: Reporting) -> None:
    calls: list[datetime] = []

    @reporting.app.publishes(ReportDue, cron="0 3 * * *", tz="Europe/Berlin")
    async def daily(uow: UnitOfWork, *, moment: datetime) -> ReportDue:
        calls.append(moment)
        return ReportDue()

    async with reporting.running():
        await reporting.begun()
    reporting.back()
    async with reporting.running():
        await until(lambda: len(reporting.published()) == 1)
        await _looked_again(reporting)
    (moment,) = calls
    assert moment.tzinfo == ZoneInfo("Europe/Berlin")
    assert (moment.hour, moment.minute, moment.second) == (3, 0, 0)
    assert timedelta(0) <= datetime.now(UTC) - moment <= timedelta(days=1, hours=1)
    assert len(reporting.published()) == 1


async def test_a_function_that_fails_leaves_nothing_and_is_called_again(
    reporting: Reporting, monkeypatch: pytest.MonkeyPatch
) -> None:
    _hurry(monkeypatch)
    calls: list[datetime] = []
    failures: list[BaseException] = [LookupError("no paper"), asyncio.CancelledError(), ValueError(), SystemExit(2)]

    @reporting.app.publishes(ReportDue, every=LONG)
    async def yearly(uow: UnitOfWork, moment: datetime) -> ReportDue:
        calls.append(moment)
        uow.publish(ReportDue("before"))
        if failures:
            raise failures.pop(0)
        return ReportDue("after")

    async with reporting.running():
        await reporting.begun()
        reporting.back()
        await until(reporting.published, lambda published: len(published) == 2, seconds=30)
        await _looked_again(reporting)
    assert reporting.published() == ["before", "after"]
    assert len(calls) == 5
    assert len(set(calls)) == 1
    assert [(name, moment) for name, moment, _ in reporting.observer.failures] == [
        ("test_a_function_that_fails_leaves_nothing_and_is_called_again.<locals>.yearly", calls[0])
    ] * 4
    assert "no paper" in reporting.observer.failures[0][2]
    assert "CancelledError" in reporting.observer.failures[1][2]
    assert "SystemExit(2)" in reporting.observer.failures[3][2]
    assert reporting.observer.crashes == []


async def test_a_function_that_cancels_its_own_task_is_called_again_and_ends_nothing_else(
    reporting: Reporting, monkeypatch: pytest.MonkeyPatch
) -> None:
    _hurry(monkeypatch)
    calls = 0

    @reporting.app.publishes(ReportDue, every=LONG)
    async def yearly() -> ReportDue:
        nonlocal calls
        calls += 1
        task = asyncio.current_task()
        assert task is not None
        if calls < 3:
            task.cancel()
        if calls == 1:
            await anyio.sleep_forever()
        return ReportDue(str(calls))

    async with reporting.running():
        await reporting.begun()
        reporting.back()
        await until(reporting.published, ["3"].__eq__, seconds=30)
        await _looked_again(reporting)
    assert calls == 3
    assert ["HandlerCancelledError" in error for _, _, error in reporting.observer.failures] == [True, True]
    assert reporting.observer.crashes == []


async def test_another_process_takes_over_what_failed_in_one(reporting: Reporting) -> None:
    broken, whole = reporting.another(), reporting.another()

    def declare(app: App, *, fails: bool) -> None:
        @app.publishes(ReportDue, every=LONG)
        async def yearly() -> ReportDue:
            if fails:
                raise LookupError
            return ReportDue()

    declare(broken, fails=True)
    declare(whole, fails=False)
    async with reporting.running(broken):
        await reporting.begun()
        reporting.back()
        await until(lambda: reporting.observer.failures)
        assert reporting.published() == []
        async with reporting.running(whole):
            await until(reporting.published, lambda published: len(published) == 1)


async def test_a_call_that_takes_too_long_is_cancelled_and_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    _hurry(monkeypatch)
    hasty = msgspec.structs.replace(QUICK, retry=msgspec.structs.replace(QUICK.retry, limit_seconds=0.1))
    reporting = Reporting(place, hasty)
    calls: list[int] = []

    @reporting.app.publishes(ReportDue, every=LONG)
    async def yearly() -> ReportDue:
        calls.append(1)
        if len(calls) == 1:
            await anyio.sleep_forever()
        return ReportDue()

    async with reporting.running():
        await reporting.begun()
        reporting.back()
        await until(reporting.published, lambda published: len(published) == 1)
    ((_, _, error),) = reporting.observer.failures
    assert "did not come to an end within 0.1 s" in error


async def test_a_long_call_is_one_call_and_moments_that_pass_meanwhile_are_one_more(reporting: Reporting) -> None:
    begun, go_on = anyio.Event(), anyio.Event()
    calls: list[datetime] = []
    apps = [reporting.another() for _ in range(2)]
    for app in apps:

        @app.publishes(ReportDue, every=0.1)
        async def often(moment: datetime) -> ReportDue:
            calls.append(moment)
            if not begun.is_set():
                begun.set()
                await go_on.wait()
            return ReportDue(str(moment))

    async with reporting.running(*apps):
        await begun.wait()
        period = timedelta(seconds=0.1)
        await until(lambda: datetime.now(UTC) > calls[0] + 10 * period)
        assert len(calls) == 1
        go_on.set()
        await until(lambda: len(calls) >= 3)
    first, second, *_ = calls
    assert second - first >= 10 * period
    assert reporting.published() == [str(moment) for moment in calls[: len(reporting.published())]]


async def test_a_stop_lets_a_call_come_to_its_end(reporting: Reporting, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, stopped = anyio.Event(), anyio.Event()
    stop = clock.Caller.stop

    def stop_and_tell(caller: clock.Caller) -> None:
        stop(caller)
        stopped.set()

    monkeypatch.setattr(clock.Caller, "stop", stop_and_tell)

    @reporting.app.publishes(ReportDue, every=LONG)
    async def yearly() -> ReportDue:
        begun.set()
        await stopped.wait()
        return ReportDue()

    async with reporting.running():
        await reporting.begun()
        reporting.back()
        await begun.wait()
    assert len(reporting.published()) == 1


async def test_a_call_that_is_stopped_at_once_is_made_again(place: Place) -> None:
    hasty = msgspec.structs.replace(QUICK, grace_seconds=0.01)
    reporting = Reporting(place, hasty)
    begun, calls = anyio.Event(), 0

    @reporting.app.publishes(ReportDue, every=LONG)
    async def yearly(uow: UnitOfWork) -> ReportDue:
        nonlocal calls
        calls += 1
        uow.publish(ReportDue("early"))
        if calls == 1:
            begun.set()
            await anyio.sleep_forever()
        return ReportDue("late")

    async with reporting.running():
        await reporting.begun()
        reporting.back()
        await begun.wait()
    assert reporting.published() == []
    async with reporting.running():
        await until(reporting.published, lambda published: published == ["early", "late"])


async def test_a_database_that_is_away_is_waited_for(reporting: Reporting, monkeypatch: pytest.MonkeyPatch) -> None:
    @reporting.app.publishes(ReportDue, every=0.2)
    async def often() -> ReportDue:
        return ReportDue()

    store: Any = reporting.app.store
    look, looks = store.period, 0

    async def fail_at_first(name: str) -> Period:
        nonlocal looks
        looks += 1
        if looks in (1, 3):
            raise StoreUnavailableError("away")
        return await look(name)  # type: ignore[no-any-return]

    monkeypatch.setattr(store, "period", fail_at_first)
    async with reporting.running():
        await until(lambda: len(reporting.published()) >= 2)
    assert reporting.observer.troubles == ["away"] * 2
    assert reporting.observer.failures == []


async def test_it_runs_where_the_relay_does(reporting: Reporting) -> None:
    calls: list[int] = []

    @reporting.app.publishes(ReportDue, every=0.1)
    async def often() -> None:
        calls.append(1)

    await reporting.app.migrate()
    async with reporting.app.running(relay=False):
        assert reporting.known() == []
    async with reporting.app.running(consume=False):
        await until(lambda: calls)


async def test_a_plain_function_runs_on_the_databases_thread(tmp_path: Any) -> None:
    reporting = Reporting(tmp_path)

    @reporting.app.publishes(ReportDue, every=0.1)
    def often(moment: datetime, uow: UnitOfWork) -> ReportDue:
        return ReportDue(str(uow.connection.execute("SELECT 7").fetchone()[0]))

    async with reporting.running():
        await until(lambda: len(reporting.published()) >= 2)
    assert set(reporting.published()) == {"7"}


async def test_it_can_be_called_by_hand_too(reporting: Reporting) -> None:
    @reporting.app.publishes(ReportDue, every=LONG)
    async def yearly(uow: UnitOfWork, moment: datetime) -> ReportDue:
        return ReportDue(str(moment))

    async with reporting.running():
        await yearly(moment=datetime(2020, 1, 1, tzinfo=UTC))
    assert reporting.published() == ["2020-01-01 00:00:00+00:00"]


# a new version of the app


@pytest.mark.parametrize(("before", "after"), [({"every": LONG}, {"every": 0.2}), ({"cron": "0 3 * * *"}, {"every": 0.2})])
async def test_another_schedule_takes_effect(reporting: Reporting, before: dict[str, Any], after: dict[str, Any]) -> None:
    calls: list[datetime] = []

    def version(schedule: dict[str, Any]) -> App:
        app = reporting.another()

        @app.publishes(ReportDue, **schedule)
        async def report(moment: datetime) -> ReportDue:
            calls.append(moment)
            return ReportDue(str(moment))

        return app

    async with reporting.running(version(before)):
        await reporting.begun()
        (old,) = reporting.known()
    assert calls == []
    started = datetime.now(UTC)
    async with reporting.running(version(after)):
        await until(lambda: len(calls) >= 3)
    (new,) = reporting.known()
    assert new[0] == old[0]
    assert new[1] != old[1]
    assert calls[0] > started - timedelta(seconds=1), "what its moments were before it was there is nobody's"
    assert len(set(reporting.published())) == len(reporting.published())
    count = len(calls)
    async with reporting.running(version(before)):
        await until(reporting.known, lambda known: known == [old])
        await _looked_again(reporting)
    assert len(calls) == count


async def test_two_versions_side_by_side_neither_call_twice_nor_never(reporting: Reporting) -> None:
    calls: list[datetime] = []

    def version(schedule: float) -> App:
        app = reporting.another()

        @app.publishes(ReportDue, every=schedule)
        async def report(moment: datetime) -> ReportDue:
            calls.append(moment)
            return ReportDue(str(moment))

        return app

    async with reporting.running(version(0.2), version(0.4), version(0.2), version(0.4)):
        await until(lambda: len(calls) >= 8)
    assert len(set(reporting.published())) == len(reporting.published())
    gaps = [after - before for before, after in itertools.pairwise(calls)]
    assert max(gaps) < timedelta(seconds=2)


# what is refused at decoration


def refused(app: Router, says: str, function: Callable[..., Any], error: type[Exception] = HandlerSignatureError) -> None:
    with pytest.raises(error, match=says):
        app.publishes(ReportDue, every=60)(function)
    assert app.periodics() == []
    assert app.published() == []


def test_what_nobody_could_supply_is_refused() -> None:
    app = Router()

    async def wants_a_name(uow: UnitOfWork, name: str) -> ReportDue:
        return ReportDue(name)

    async def by_position(moment: datetime, /) -> None: ...

    async def variadic(*moments: datetime) -> None: ...

    refused(app, "wants_a_name is called by itself, and parameter name: str cannot be supplied", wants_a_name)
    refused(app, "by its name", by_position)
    refused(app, "by its name", variadic)

    @app.publishes(ReportDue, every=60)
    async def with_defaults(uow: UnitOfWork, name: str = "", *words: str, moment: datetime, **options: str) -> None: ...

    assert [each.moments for each in app.periodics()] == [("moment",)]


def test_a_schedule_that_makes_no_sense_is_refused_with_the_functions_name() -> None:
    app = Router()

    async def report() -> None: ...

    with pytest.raises(ConfigurationError, match=r"report: cron='0 25 \* \* \*': Bad hour"):
        app.publishes(ReportDue, cron="0 25 * * *")(report)
    assert app.periodics() == []
    assert app.published() == []


def test_two_functions_of_one_name_are_refused() -> None:
    app, other = App("shop", store="sqlite:///shop.db", broker="memory://"), Router()

    def declare(router: Router) -> None:
        @router.publishes(ReportDue, every=60)
        async def report() -> None: ...

    declare(app)
    with pytest.raises(ConfigurationError, match=r"two periodic functions are called '.*report'"):
        declare(app)
    declare(other)
    with pytest.raises(ConfigurationError, match="two periodic functions"):
        app.include(other)
    assert len(app.periodics()) == 1


def test_functions_of_included_routers_are_called_too() -> None:
    app, router = App("shop", store="sqlite:///shop.db", broker="memory://"), Router()

    @router.publishes(ReportDue, every=60)
    async def report() -> None: ...

    app.include(router)
    assert [each.name for each in app.periodics()] == ["test_functions_of_included_routers_are_called_too.<locals>.report"]


def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have failed calls made again soon."""
    monkeypatch.setattr(clock, "_AGAIN", Backoff(first_seconds=0.01, cap_seconds=0.02))


async def _looked_again(reporting: Reporting) -> None:
    """Wait until the app has looked at its periods a few times more, and found nothing to do."""
    looks = reporting.looks
    await until(lambda: reporting.looks >= looks + 3)
