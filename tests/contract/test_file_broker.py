"""The example of a broker keeps the contract, by the very suite that docs/adapters.md shows."""

import importlib
import re
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from outboxkit.broker import Broker
from outboxkit.message import ORIGIN, Stream
from outboxkit.testing import BrokerContract, StoreContract

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
EXAMPLE = str(ROOT / "examples" / "filebroker")

sys.path.insert(0, EXAMPLE)  # its modules stand beside each other, as in a user's project
FileBroker: Any = importlib.import_module("file_broker").FileBroker
sys.path.remove(EXAMPLE)
STREAM = Stream("topic", 0, "source")

_names: dict[str, Any] = {
    "AsyncIterator": AsyncIterator,
    "Path": Path,
    "pytest": pytest,
    "shutil": shutil,
    "Broker": Broker,
    "BrokerContract": BrokerContract,
    "FileBroker": FileBroker,
    "__name__": __name__,
}
(_shown,) = re.findall(r"^class TestFileBroker.*?(?=```)", PAGE, re.DOTALL | re.MULTILINE)
exec(_shown, _names)
TestFileBroker = _names["TestFileBroker"]


async def test_what_a_crash_left_half_written_is_no_record(tmp_path: Path) -> None:
    broker: Any = FileBroker(f"file://{tmp_path}")
    await broker.open()
    await broker.subscribe("group", STREAM, ORIGIN)
    whole = (tmp_path / "journal").read_bytes()
    (tmp_path / "journal").write_bytes(whole + b'[["dismissed",["topic",0,"source"],"gro')
    after: Any = FileBroker(f"file://{tmp_path}")
    await after.open()
    assert await after.groups([STREAM])
    await after.announce([STREAM])
    assert (tmp_path / "journal").read_bytes().startswith(whole + b'[["announced"')


def test_the_page_counts_the_cases_right() -> None:
    for contract in (BrokerContract, StoreContract):
        count = sum(name.startswith("test_") for name in dir(contract))
        assert re.search(rf"`(outboxkit\.testing\.)?{contract.__name__}`( has)? {count}\b", PAGE)
