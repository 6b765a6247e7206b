"""What docs/time.md shows, works."""

import re
import sqlite3
from contextlib import closing
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from outboxkit.testing import drain
from tests.waiting import until

PAGE = (Path(__file__).parents[1] / "docs" / "time.md").read_text(encoding="utf-8")


async def test_delaying_cancelling_and_calling_by_the_clock_work_as_shown(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    assert "redis://localhost:6379" in code
    names: dict[str, Any] = {"__name__": "shop"}
    exec(code.replace("redis://localhost:6379", redis_url), names)
    app = names["app"]
    await app.migrate()

    def ask(query: str) -> list[Any]:
        with closing(sqlite3.connect("shop.db")) as database, database:
            return database.execute(query).fetchall()

    ask("CREATE TABLE orders (number TEXT PRIMARY KEY, reminder TEXT)")
    async with app:
        for number in ("7", "8"):
            await names["place"](number=number)
        await names["pay"](number="7")
        assert ask("SELECT type, key FROM outboxkit_later") == [("order.unpaid", "8")]
        await drain(app)
        (update,) = re.findall(r"`(UPDATE .*?)` on SQLite", PAGE)
        ask(update)
        await drain(app)
        await until(lambda: ask("SELECT * FROM outboxkit_period"))
        ask("UPDATE outboxkit_period SET at = at - 200000")
    async with app:
        await until(lambda: len(ask("SELECT 1 FROM outboxkit_outbox WHERE type = 'day.closed'")) == 1)
        await drain(app)
    assert (await app.status()).rows_delayed is not None
    assert [type for (type,) in ask("SELECT type FROM outboxkit_outbox ORDER BY position")] == [
        *("order.placed", "order.placed"),
        *("order.paid", "order.unpaid", "day.closed"),
    ]
    moment = datetime(2026, 11, 22, 3, tzinfo=UTC)
    assert (await _called(app, names["close_day"], moment)).day == date(2026, 11, 21)


async def _called(app: Any, function: Any, moment: datetime) -> Any:
    async with app:
        return await function(moment=moment)
