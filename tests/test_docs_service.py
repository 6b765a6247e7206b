"""What docs/service.md shows, works."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from outboxkit.testing import drain

PAGE = (Path(__file__).parents[1] / "docs" / "service.md").read_text(encoding="utf-8")


@pytest.fixture
def names(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    assert "redis://localhost:6379" in code
    names: dict[str, Any] = {"__name__": "bank"}
    exec(code.replace("redis://localhost:6379", redis_url), names)
    return names


def ask(query: str) -> list[Any]:
    with closing(sqlite3.connect("bank.db")) as database, database:
        return database.execute(query).fetchall()


async def test_a_web_worker_publishes_before_it_answers_and_another_process_runs_the_loops(names: dict[str, Any]) -> None:
    app, api = names["app"], names["api"]
    await app.migrate()
    # The check fails when the transaction is committed, which is the last moment.
    ask("CREATE TABLE accounts (name TEXT PRIMARY KEY)")
    ask("INSERT INTO accounts VALUES ('ada')")
    ask(
        "CREATE TABLE payments (account TEXT REFERENCES accounts (name) DEFERRABLE INITIALLY DEFERRED, cents INTEGER)",
    )
    app.store = "sqlite:///bank.db?foreign_keys=on"
    client = httpx.AsyncClient(transport=httpx.ASGITransport(api, raise_app_exceptions=False), base_url="http://bank")
    async with api.router.lifespan_context(api), client:
        assert not app.is_running
        paid = await client.post("/payments?account=ada&cents=5", headers={"traceparent": "00-1-2-01"})
        charged = await client.post("/fees?account=ada")
        refused = [await client.post(f"/{what}?account=nobody&cents=5") for what in ("payments", "fees")]
        health = await client.get("/health")
    assert [answer.status_code for answer in (paid, charged, *refused)] == [201, 201, 500, 500]
    assert (health.status_code, health.json()) == (200, [])
    assert ask("SELECT account, cents FROM payments") == [("ada", 5), ("ada", 100)]
    envelopes = [envelope.decode() for (envelope,) in ask("SELECT envelope FROM outboxkit_outbox ORDER BY id")]
    assert len(envelopes) == 2
    assert '"traceparent":"00-1-2-01"' in envelopes[0]
    async with app:
        await drain(app)
    assert names["metrics"].messages == {"settled": 2}


async def test_what_it_says_of_a_dependency_without_a_scope_is_so(names: dict[str, Any]) -> None:
    """Should FastAPI come to end dependencies before it answers, the page has to be changed."""
    from fastapi import Depends, FastAPI

    ended: list[str] = []

    async def unit() -> Any:
        yield
        ended.append("dependency")

    api = FastAPI()

    @api.get("/")
    async def answer(_: None = Depends(unit)) -> None: ...

    async def told(message: Any) -> None:
        if message["type"] == "http.response.start":
            ended.append("answer")

    async def asked() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope: dict[str, Any] = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "headers": [],
        "http_version": "1.1",
    }
    await api(scope, asked, told)
    assert ended == ["answer", "dependency"]


async def test_a_test_of_such_a_service_works_as_shown(names: dict[str, Any], tmp_path: Path) -> None:
    await names["test_a_payment_is_announced"](tmp_path)
    await names["test_a_payment_is_made_and_announced_or_neither"](tmp_path)
