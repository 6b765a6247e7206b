"""What an attacker would look for: passwords in what is shown, pickles, names that become SQL."""

import ast
import functools
import logging
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import anyio
import pytest
import redis
from click.testing import CliRunner

from outboxkit import App, ConfigurationError, event
from outboxkit.cli import commands
from outboxkit.errors import EventDeclarationError, OutboxkitError
from outboxkit.testing.postgres_server import PostgresServer
from outboxkit.testing.redis_server import RedisServer
from outboxkit_postgres import PostgresStore
from outboxkit_redis import RedisBroker
from outboxkit_sqlite import SQLiteStore
from tests.hostile.corpus import BAD_NAMES, TEXTS
from tests.services import Recording

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
CANARY = "c4nary/?#@:%pass"
SECRETS = (CANARY, quote(CANARY, safe=""), "c4nary")


# nothing is run that came from elsewhere


def test_nothing_is_unpickled_evaluated_or_imported_by_a_name_that_was_read() -> None:
    forbidden = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle"}
    found: list[str] = []
    for file in (*(ROOT / "outboxkit").rglob("*.py"), *(ROOT / "adapters").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names: set[str] = set()
            if isinstance(node, ast.Import):
                names = {alias.name.partition(".")[0] for alias in node.names} & forbidden
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").partition(".")[0]} & forbidden
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names = {node.func.id} & {"eval", "exec", "compile", "__import__"}
            elif isinstance(node, ast.Attribute) and node.attr == "import_module":
                names = {"import_module"}
            found += [f"{file.relative_to(ROOT)}: {name}" for name in names]
    # The module of the app that the command line was given, and nothing else.
    assert found == ["outboxkit/cli/loading.py: import_module"]


# names


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_what_is_no_name_is_refused_wherever_a_name_is_asked_for(name: str) -> None:
    def app(**names: Any) -> App:
        given: dict[str, Any] = {"name": "shop", "store": "sqlite:///shop.db", "broker": "sqlite:///broker.db", **names}
        return App(**given)

    asked: list[Callable[[], object]] = [
        lambda: app(name=name),
        lambda: app(group=name),
        lambda: app(reader=name),
        lambda: event(name, topic="topic")(type("Event", (), {})),
        lambda: event("event", topic=name)(type("Event", (), {})),
        lambda: RedisBroker(f"redis://host?prefix={quote(name, errors='surrogatepass')}"),
        lambda: SQLiteStore(f"sqlite:///shop.db?prefix={quote(name, errors='surrogatepass')}"),
        lambda: PostgresStore(f"postgresql://host/shop?prefix={quote(name, errors='surrogatepass')}"),
        lambda: PostgresStore(f"postgresql://host/shop?schema={quote(name, errors='surrogatepass')}"),
    ]
    for ask in asked:
        with pytest.raises((ConfigurationError, EventDeclarationError)):
            ask()


# passwords


class Told:
    """Everything that was shown anywhere."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog
        self.texts: list[str] = []

    def error(self, error: BaseException) -> None:
        self.texts += ["".join(traceback.format_exception(error)), repr(error), str(error)]

    def none_tells(self) -> bool:
        records = [str(vars(record)) + record.getMessage() for record in self._caplog.records]
        whole = "\n".join([*self.texts, *records, self._caplog.text])
        assert len(whole) > 100, "there was something to look through"
        return not any(secret in whole for secret in SECRETS)


BROKERS = {
    "server": "redis://{at}/0",
    "cluster": "redis+cluster://{at}",
    "sentinel": "redis+sentinel://{at}/service/0?sentinel_user=user&sentinel_password={secret}",
    "tls": "rediss://{at}/0",
}
"""URLs with a password."""


def store_url(port: int) -> str:
    return f"postgresql://user:{quote(CANARY, safe='')}@127.0.0.1:{port}/postgres"


def broker_url_of(kind: str, port: int) -> str:
    secret = quote(CANARY, safe="")
    return BROKERS[kind].format(at=f"user:{secret}@127.0.0.1:{port}", secret=secret)


@pytest.mark.parametrize("kind", BROKERS)
async def test_no_password_of_a_server_that_is_away_is_ever_shown(
    kind: str, unused_port: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    told = Told(caplog)
    for store in (store_url(unused_port), f"sqlite:///{tmp_path / 'shop.db'}"):
        await show_everything(store, broker_url_of(kind, unused_port), told, monkeypatch)
    assert told.none_tells()


@pytest.fixture(scope="module")
def guarded_postgres(postgres_binaries: Path) -> Iterator[int]:
    """The port of a Postgres whose role ``user`` has another password."""
    with PostgresServer(postgres_binaries, password_roles={"user": "another"}) as server:
        yield urlsplit(server.url()).port or 0


@pytest.fixture(scope="module")
def guarded_redis(redis_binary: str) -> Iterator[int]:
    """The port of a Redis whose user ``user`` has another password."""
    driver: Any = redis.Redis
    with RedisServer(redis_binary) as server:
        with driver(port=server.port) as client:
            client.execute_command("ACL", "SETUSER", "user", "on", ">another", "~*", "+@all")
        yield server.port


@pytest.mark.parametrize("kind", ["server", "cluster", "sentinel"])
async def test_no_password_that_is_refused_is_ever_shown(
    kind: str,
    guarded_postgres: int,
    guarded_redis: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    caplog.set_level(logging.DEBUG)
    told = Told(caplog)
    for store in (store_url(guarded_postgres), f"sqlite:///{tmp_path / 'shop.db'}"):
        await show_everything(store, broker_url_of(kind, guarded_redis), told, monkeypatch)
    assert any("password authentication failed" in text for text in told.texts)
    assert any("invalid username-password pair" in text for text in told.texts)
    assert told.none_tells()


async def show_everything(store: str, broker: str, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an app say all it has to say, by itself and on the command line."""
    app = App("shop", store=store, broker=broker, observer=Recording())
    told.texts += [repr(app), repr(app.store), repr(app.broker), str(app.store), str(app.broker)]
    for call in (app.migrate, app.check, functools.partial(app.dismiss, "group"), functools.partial(_run_shortly, app)):
        try:
            told.texts.append(repr(await call()))
        except OutboxkitError as error:
            told.error(error)
    told.texts += [repr(await app.status()), str(vars(app.observer))]
    module: Any = ModuleType("app_of_a_test")
    module.app = app
    monkeypatch.setitem(sys.modules, "app_of_a_test", module)
    for command in ("status", "status --json", "check", "migrate", "dead list", "dismiss --group x"):
        words = command.split()
        words.insert(2 if command == "dead list" else 1, "app_of_a_test:app")
        invoke = functools.partial(CliRunner().invoke, commands, [*words, "--log-level", "debug"])
        result = await anyio.to_thread.run_sync(invoke)
        told.texts.append(result.output)
        if result.exc_info:
            told.texts += traceback.format_exception(*result.exc_info)


async def _run_shortly(app: App) -> None:
    with anyio.move_on_after(0.5):
        async with app:
            await anyio.sleep_forever()


@pytest.mark.parametrize("raw", [CANARY, f"{CANARY}[", *(f"c4nary{text}" for text in TEXTS.values())], ids=ascii)
def test_a_url_that_cannot_be_read_is_refused_without_what_may_be_its_password(
    raw: str, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told(caplog)
    told.texts.append(" " * 100)
    for scheme in ("redis", "rediss", "redis+cluster", "redis+sentinel", "postgresql", "sqlite", "c4nary"):
        make = {"postgresql": PostgresStore, "sqlite": SQLiteStore}.get(scheme, RedisBroker)
        for url in (
            f"{scheme}://user:{raw}@host:x/shop",
            f"{scheme}://user:{raw}@host/shop?{raw}=1",
            f"{scheme}://:{raw}@/a/b/c#x",
        ):
            try:
                told.texts.append(repr(make(url)))
            except ConfigurationError as error:
                told.error(error)
    assert told.none_tells()
