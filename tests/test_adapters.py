"""A URL finds its adapter; one that cannot says what there is, or what to install."""

import re
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from outboxkit import App, ConfigurationError, Observer, Settings
from outboxkit.adapters import broker_of, store_of
from outboxkit.errors import MissingExtraError, UnknownSchemeError
from outboxkit.testing import MemoryBroker, MemoryStore
from outboxkit_redis import RedisBroker
from outboxkit_sqlite import SQLiteBroker, SQLiteStore


def test_a_url_finds_the_adapter_that_claims_its_scheme() -> None:
    assert isinstance(store_of("sqlite:///shop.db"), SQLiteStore)
    assert isinstance(broker_of("sqlite:///broker.db"), SQLiteBroker)
    assert isinstance(broker_of("redis://localhost:6379"), RedisBroker)
    assert isinstance(broker_of("rediss://localhost:6379"), RedisBroker)
    assert isinstance(broker_of("redis+cluster://one:7000,two:7000"), RedisBroker)
    assert isinstance(broker_of("rediss+cluster://one:7000,two:7000"), RedisBroker)
    assert isinstance(broker_of("redis+sentinel://one,two/orders"), RedisBroker)
    assert isinstance(broker_of("rediss+sentinel://one,two/orders"), RedisBroker)
    assert isinstance(broker_of("memory://"), MemoryBroker)


def test_a_store_or_broker_that_is_made_already_is_taken_as_it_is() -> None:
    store, broker = SQLiteStore("sqlite:///shop.db"), MemoryBroker()
    assert store_of(store) is store
    assert broker_of(broker) is broker


@pytest.mark.parametrize("url", ["redsi://user:hunter2@host", "mysql://user:hunter2@host/shop", "memory2://hunter2"])
def test_an_unknown_scheme_names_those_there_are_and_never_the_password(url: str) -> None:
    scheme = url.partition(":")[0]
    with pytest.raises(
        UnknownSchemeError,
        match=rf"no broker adapter claims '{scheme}:': use one of redis://, .*; or, in tests, .* one MemoryBroker",
    ) as no:
        broker_of(url)
    with pytest.raises(UnknownSchemeError, match=rf"no store adapter claims '{scheme}:': use one of .*sqlite://") as none:
        store_of(url)
    assert "hunter2" not in str(no.value) + str(none.value)
    assert "memory://, " not in str(no.value), "two apps would not meet there"


@pytest.mark.parametrize("url", ["", "shop.db", "hunter2", "user@host/hunter2"])
def test_a_url_without_a_scheme_is_told_so_and_not_repeated(url: str) -> None:
    with pytest.raises(UnknownSchemeError, match="no store adapter claims 'a URL without a scheme': use one of") as refused:
        store_of(url)
    assert not url or url not in str(refused.value)


@pytest.mark.parametrize(
    ("store", "told"),
    [
        (
            create_async_engine("sqlite+aiosqlite:///shop.db"),
            "AsyncEngine and no store: wrap SQLAlchemy's engine, store=SQLAlchemyStore(engine)",
        ),
        (create_engine("sqlite:///shop.db"), "Engine and no store: wrap SQLAlchemy's engine, store=SQLAlchemyStore(engine)"),
        (Path("shop.db"), "PosixPath and no store: give it as a URL, 'sqlite:///shop.db'"),
        (Path("/var/shop.db"), "PosixPath and no store: give it as a URL, 'sqlite:////var/shop.db'"),
        (MemoryStore, "the class MemoryStore and no store: give one that is made, MemoryStore(...)"),
        (MemoryBroker(), 'MemoryBroker and no store: give a URL, "sqlite:///shop.db", or a store'),
        (None, 'store= is None and no store: give a URL, "sqlite:///shop.db", or a store'),
        (b"sqlite:///shop.db", "bytes and no store"),
    ],
)
def test_what_is_no_store_is_told_with_what_to_give(store: Any, told: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(told)):
        App("shop", store=store, broker=MemoryBroker())


@pytest.mark.parametrize(
    ("broker", "told"),
    [
        (None, 'broker= is None and no broker: give a URL, "redis://localhost:6379", or a broker'),
        (Path("broker.db"), "PosixPath and no broker: give it as a URL, 'sqlite:///broker.db'"),
        (MemoryBroker, "the class MemoryBroker and no broker: give one that is made, MemoryBroker(...)"),
        (MemoryStore(), "MemoryStore and no broker"),
    ],
)
def test_what_is_no_broker_is_told_with_what_to_give(broker: Any, told: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(told)):
        App("shop", store=MemoryStore(), broker=broker)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"observer": Observer}, "observer= is the class Observer: it takes an object, Observer()"),
        ({"observer": print}, "observer= is something of type builtin_function_or_method: it takes an Observer"),
        ({"settings": {"grace_seconds": 1}}, "settings= is something of type dict: it takes Settings(...)"),
        ({"settings": Settings}, "settings= is the class Settings: it takes Settings(...)"),
    ],
)
def test_an_argument_of_an_app_that_is_something_else_is_named_with_what_it_takes(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(told)):
        App("shop", store=MemoryStore(), broker=MemoryBroker(), **arguments)


@pytest.mark.parametrize("scheme", ["postgresql+asyncpg", "postgresql+psycopg", "sqlite+aiosqlite"])
def test_a_url_of_sqlalchemys_is_told_with_the_store_that_takes_its_engine(scheme: str) -> None:
    with pytest.raises(UnknownSchemeError, match=r"; or have SQLAlchemy take it: store=SQLAlchemyStore") as refused:
        store_of(f"{scheme}://user:hunter2@host/shop")
    assert "hunter2" not in str(refused.value)


def test_a_database_that_nothing_here_can_use_is_not_sent_to_sqlalchemy() -> None:
    with pytest.raises(UnknownSchemeError) as refused:
        store_of("mysql+aiomysql://host/shop")
    assert "SQLAlchemy" not in str(refused.value)


def test_an_app_refuses_a_url_when_it_is_made() -> None:
    with pytest.raises(UnknownSchemeError, match="no store adapter claims 'postgrse:'"):
        App("shop", store="postgrse://localhost/shop", broker=MemoryBroker())


@pytest.mark.parametrize(
    ("value", "extra"),
    [("missing_driver:Store", "fake"), ("missing_driver:Store [box]", "box"), ("tests.nowhere:Store", "fake")],
)
def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch, value: str, extra: str) -> None:
    def known(*, group: str) -> EntryPoints:
        return EntryPoints([EntryPoint("fake", value, group)])

    monkeypatch.setattr("importlib.metadata.entry_points", known)
    missing = value.partition(":")[0].replace(".", r"\.")
    for make in (store_of, broker_of):
        with pytest.raises(
            MissingExtraError, match=rf"fake:// needs the package '{missing}': pip install 'outboxkit\[{extra}\]'"
        ):
            make("fake://localhost")


def test_an_adapter_that_is_broken_fails_as_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def known(**_: Any) -> EntryPoints:
        return EntryPoints([EntryPoint("fake", "outboxkit.adapters:Nothing", "outboxkit.stores")])

    monkeypatch.setattr("importlib.metadata.entry_points", known)
    with pytest.raises(AttributeError, match="Nothing"):
        store_of("fake://localhost")
