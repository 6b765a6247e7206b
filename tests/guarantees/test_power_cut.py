"""A power cut takes back nothing of what was sent: on SQLite a commit is on the disk before anybody reads it."""

import asyncio
import sys
from pathlib import Path

import pytest

from outboxkit.message import ORIGIN
from outboxkit_redis import RedisBroker
from tests.databases import SQLiteDatabase
from tests.guarantees.lossy_disk import sqlite_library
from tests.redis_brokers import Connect

COUNT = 30


async def test_what_was_relayed_outlasts_a_power_cut(tmp_path: Path, redis_url: str, connect: Connect) -> None:
    """L1, with a disk that keeps nothing but what was synced."""
    if not hasattr(sqlite_library(), "sqlite3_vfs_find"):
        pytest.skip("this Python hides its SQLite, whose file layer is to be replaced")
    words = ("-m", "tests.guarantees.lossy_disk", str(tmp_path), redis_url, str(COUNT))
    process = await asyncio.create_subprocess_exec(sys.executable, *words)
    assert await asyncio.wait_for(process.wait(), 60) == 0
    sent = await relayed(await connect(redis_url))
    assert len(sent) == COUNT
    for copy in (tmp_path / "disk").iterdir():
        if not (tmp_path / copy.name).exists():  # that it was deleted is synced too
            copy.unlink()
    kept = SQLiteDatabase(tmp_path / "disk" / "publisher.db").ask("SELECT position, envelope FROM outboxkit_outbox")
    assert sent == dict(kept)


async def relayed(broker: RedisBroker) -> dict[int, bytes]:
    """Return what is in the broker, by its position in the log."""
    streams = await broker.streams("numbers")
    entries = [await broker.range(stream, after=ORIGIN, upto=None, limit=1000) for stream in streams]
    return {entry.position.major: entry.envelope for page in entries for entry in page}
