"""What docs/postgres.md shows, works."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from outboxkit.message import Envelope
from outboxkit.testing import drain
from outboxkit_postgres import address
from tests.waiting import until

PAGE = (Path(__file__).parents[1] / "docs" / "postgres.md").read_text(encoding="utf-8")


def shown(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


async def connected(url: str) -> Any:
    return await asyncpg.connect(url)


def run_shown(url: str, broker: str) -> dict[str, Any]:
    code = "\n".join(shown("python"))
    for placeholder, real in (("postgresql://localhost/shop", url), ("redis://localhost:6379", broker)):
        assert placeholder in code
        code = code.replace(placeholder, real)
    names: dict[str, Any] = {"__name__": "shop"}
    exec(code, names)
    return names


async def confirmed(connection: Any) -> list[str]:
    return [number for (number,) in await connection.fetch("SELECT number FROM confirmed ORDER BY number")]


async def events_of(connection: Any) -> list[Envelope]:
    rows = await connection.fetch("SELECT envelope FROM outboxkit_outbox ORDER BY seq")
    return [Envelope.decode(envelope) for (envelope,) in rows]


async def test_all_three_ways_to_publish_work_as_shown(postgres_url: str, redis_url: str) -> None:
    names = run_shown(postgres_url, redis_url)
    app = names["app"]
    await app.migrate()
    connection = await connected(postgres_url)
    for table in ("placed", "imported", "confirmed"):
        await connection.execute(f"CREATE TABLE {table} (number text, total integer)")
    trigger, _ = shown("sql")
    await connection.execute(trigger)
    async with app, asyncpg.create_pool(postgres_url, min_size=1, max_size=2) as pool:
        await names["place"](number="by the function", total=1)
        await names["place_by_hand"](pool, "by hand", 2)
        await connection.execute("INSERT INTO imported VALUES ('by the trigger', 3)")
        await until(lambda: confirmed(connection), lambda numbers: len(numbers) == 3)
        await drain(app)
    assert await confirmed(connection) == ["by hand", "by the function", "by the trigger"]
    assert {envelope.source for envelope in await events_of(connection)} == {"shop"}
    await connection.close()


async def test_the_role_that_may_do_little_can_do_its_work(postgres_url: str, redis_url: str) -> None:
    owner_names = run_shown(postgres_url, redis_url)
    await owner_names["app"].migrate()
    role = f"service_{urlsplit(postgres_url).path[-8:]}"
    owner = await connected(postgres_url)
    await owner.execute(f"CREATE ROLE {role} LOGIN")
    try:
        for table in ("placed", "confirmed"):
            await owner.execute(f"CREATE TABLE {table} (number text, total integer)")
        _, grants = shown("sql")
        await owner.execute(grants.replace("TO service", f"TO {role}"))
        await owner.execute(f"GRANT INSERT ON placed, confirmed TO {role}")
        names = run_shown(postgres_url.replace("postgres@", f"{role}@"), redis_url)
        app = names["app"]
        async with app:
            await names["place"](number="one", total=1)
            await until(lambda: confirmed(owner), lambda numbers: numbers == ["one"])
            await drain(app)
    finally:
        await owner.execute(f"DROP OWNED BY {role}")
        await owner.execute(f"DROP ROLE {role}")
        await owner.close()


def test_every_option_is_named() -> None:
    named = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert sorted(named) == sorted(address.OPTIONS)


@pytest.mark.parametrize("language", ["python", "sql"])
def test_there_is_something_shown(language: str) -> None:
    assert len(shown(language)) == 2
