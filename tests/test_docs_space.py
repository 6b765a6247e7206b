"""What docs/space.md shows, works."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from outboxkit import RetentionSettings
from outboxkit.cli import commands

PAGE = (Path(__file__).parents[1] / "docs" / "space.md").read_text(encoding="utf-8")


def shown(language: str) -> str:
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return "\n".join(found)


def test_the_settings_shown_are_those_that_hold_anyway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "shop"}
    exec(shown("python"), names)
    assert names["app"].settings.retention == RetentionSettings()


def test_a_group_that_holds_rows_back_is_named_and_dismissed_as_shown(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = f"shop_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(shown("python").replace("redis://localhost:6379", redis_url))

    def run(*words: str) -> Result:
        command, *rest = words
        return CliRunner().invoke(commands, [command, f"{module}:app", *rest])

    assert run("migrate").exit_code == 0
    with closing(sqlite3.connect("shop.db")) as database:
        for statement in (
            "INSERT INTO outboxkit_stream VALUES ('orders', 3, 51200, 0)",
            "INSERT INTO outboxkit_mark VALUES (51200, 0, unixepoch('now', '-4 days'))",
            "INSERT INTO outboxkit_known_group VALUES ('orders', 3, 'billing', 51200, 0, unixepoch('now', '-3 seconds'), NULL)",
            "INSERT INTO outboxkit_known_group VALUES ('orders', 3, 'reporting', 1207, 0, unixepoch('now', '-9 days'), NULL)",
        ):
            database.execute(statement)
        database.commit()
    status = run("status")
    assert status.exit_code == 1, status.output
    lines = shown("console").splitlines()
    answer = {tuple(line.split()) for line in status.output.splitlines()}
    for line in lines[lines.index("needs a hand:") - 4 :]:
        if not line.startswith("billing"):  # a moment ago
            assert tuple(line.split()) in answer, status.output
    dismissed = run("dismiss", "reporting")
    assert (dismissed.exit_code, dismissed.output) == (
        0,
        "orders:3:shop: dismissed group reporting, which had settled up to 1207-0\n",
    )
    assert run("status").exit_code == 0
    unknown = run("dismiss", "reporting")
    assert unknown.exit_code == 1
    assert "no group 'reporting' is known to read the streams of this app: known are billing" in unknown.output
