"""A URL finds its adapter; one that cannot says what there is, or what to install."""

from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest

from outboxkit import App
from outboxkit.adapters import broker_of, store_of
from outboxkit.errors import MissingExtraError, UnknownSchemeError
from outboxkit.testing import MemoryBroker
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
        UnknownSchemeError, match=rf"no broker adapter claims '{scheme}:': use one of memory://, .*redis://"
    ) as no:
        broker_of(url)
    with pytest.raises(UnknownSchemeError, match=rf"no store adapter claims '{scheme}:': use one of .*sqlite://") as none:
        store_of(url)
    assert "hunter2" not in str(no.value) + str(none.value)


@pytest.mark.parametrize("url", ["", "shop.db", "hunter2", "user@host/hunter2"])
def test_a_url_without_a_scheme_is_told_so_and_not_repeated(url: str) -> None:
    with pytest.raises(UnknownSchemeError, match="no store adapter claims 'a URL without a scheme': use one of") as refused:
        store_of(url)
    assert not url or url not in str(refused.value)


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

    monkeypatch.setattr("outboxkit.adapters.entry_points", known)
    missing = value.partition(":")[0].replace(".", r"\.")
    for make in (store_of, broker_of):
        with pytest.raises(
            MissingExtraError, match=rf"fake:// needs the package '{missing}': pip install 'outboxkit\[{extra}\]'"
        ):
            make("fake://localhost")


def test_an_adapter_that_is_broken_fails_as_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def known(**_: Any) -> EntryPoints:
        return EntryPoints([EntryPoint("fake", "outboxkit.adapters:Nothing", "outboxkit.stores")])

    monkeypatch.setattr("outboxkit.adapters.entry_points", known)
    with pytest.raises(AttributeError, match="Nothing"):
        store_of("fake://localhost")
