"""What the README and the docs show, works."""

import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import until

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


async def test_the_first_app_works_as_shown(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    assert "redis://localhost:6379" in shown
    names: dict[str, Any] = {"__name__": "first_app"}
    exec(shown.replace("redis://localhost:6379", redis_url), names)
    await names["test_an_announcement_arrives"]()
    app, newsletter = names["app"], names["newsletter"]
    await app.migrate()
    await newsletter.migrate()
    with sqlite3.connect("subscriptions.db") as database:
        database.execute("CREATE TABLE subscribers (email TEXT PRIMARY KEY, name TEXT)")
    database.close()
    with sqlite3.connect("newsletter.db") as database:
        database.execute("CREATE TABLE targets (email TEXT)")
        async with app, newsletter:
            await names["sign_up"](email="ada@example.com", name="Ada")
            await until(lambda: database.execute("SELECT email FROM targets").fetchall() == [("ada@example.com",)])
    database.close()
    await _with_sqlalchemy(names)


async def _with_sqlalchemy(names: dict[str, Any]) -> None:
    accounts, engine = names["accounts"], names["engine"]
    await accounts.migrate()
    async with engine.begin() as connection:
        await connection.run_sync(names["Base"].metadata.create_all)
    async with accounts:
        await names["subscribe"](email="ada@example.com", name="Ada")
        async with names["AsyncSession"](engine) as session:
            await names["subscribe_in"](session, "bob@example.com", "Bob")
            await session.commit()
    await engine.dispose()
    with sqlite3.connect("accounts.db") as database:
        assert database.execute("SELECT name FROM subscribers ORDER BY name").fetchall() == [("Ada",), ("Bob",)]
        assert database.execute("SELECT key FROM outboxkit_outbox").fetchall() == [("ada@example.com",), ("bob@example.com",)]
    database.close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r"`((?:tests|docs|examples|outboxkit)/[\w./-]+)`", text)
    missing = [name for name in named if "://" not in name and not (ROOT / name).exists() and not (page.parent / name).exists()]
    assert missing == []


def test_the_two_commands_are_the_ones_ci_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = re.findall(r"^\$ (python3 -m venv .*)$", README, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert command in ci
