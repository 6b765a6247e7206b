"""What an app keeps, and what it says when it is used in a way that cannot work."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from outboxkit import App, ConfigurationError, event
from outboxkit.testing import MemoryBroker, MemoryStore


@event("noted", topic="notes")
class Noted(msgspec.Struct):
    pass


def an_app() -> App:
    return App("shop", store="sqlite:///nobody-opens-this.db", broker="redis://nobody-asks-this")


async def test_a_test_may_give_an_app_another_database_and_broker_while_it_is_closed(tmp_path: Path) -> None:
    app = an_app()
    app.store, app.broker = f"sqlite:///{tmp_path}/shop.db", MemoryBroker()
    await app.migrate()
    async with app:
        assert not (await app.status()).troubles
        for what, other in (("store", MemoryStore()), ("broker", MemoryBroker())):
            with pytest.raises(ConfigurationError, match=f"app 'shop' is open, and keeps its {what}"):
                setattr(app, what, other)
    app.store, app.broker = MemoryStore(), MemoryBroker()
    await app.migrate()
    async with app:
        assert not (await app.status()).troubles


def test_what_is_no_store_or_broker_is_refused_on_setting_too() -> None:
    app = an_app()
    with pytest.raises(ConfigurationError):
        app.store = "mysql://"
    with pytest.raises(ConfigurationError):
        app.broker = 7  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]


async def test_a_database_without_a_thread_is_refused_where_plain_functions_are_decorated_already() -> None:
    app = an_app()

    @app.publishes(Noted)
    def note() -> Noted:
        return Noted()

    before = app.store
    with pytest.raises(ConfigurationError, match=r"note is a plain function.*write `async def`"):
        app.store = "postgresql://nobody-asks-this/db"
    assert app.store is before


async def test_an_app_that_is_left_in_another_task_says_what_to_do_instead() -> None:
    app = an_app()
    app.store, app.broker = MemoryStore(), MemoryBroker()
    await app.migrate()
    entered, leave = asyncio.Event(), asyncio.Event()

    async def fixture() -> None:
        await app.__aenter__()
        entered.set()
        await leave.wait()

    task = asyncio.create_task(fixture())
    await entered.wait()
    with pytest.raises(RuntimeError) as raised:
        await app.__aexit__(None, None, None)
    assert any("write `async with app:` in the test itself" in note for note in raised.value.__notes__)
    leave.set()
    await asyncio.wait([task])
