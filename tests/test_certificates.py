"""What stands on a certificate is what came of the run; what fails and was not declared fails it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

SUITE = '''
from collections.abc import Sequence

import pytest

from outboxkit.broker import Append
from outboxkit.message import Position, Stream
from outboxkit.testing import BrokerContract, MemoryBroker


class Hasty(MemoryBroker):
    """Trims what nobody has read."""

    async def trim(self, stream: Stream, upto: Position) -> int:
        return self._log(stream).trim(upto)


class Test{broker}(BrokerContract):
    cannot = {cannot}

    @pytest.fixture
    async def broker(self):
        broker = {broker}()
        await broker.open()
        yield broker
        await broker.aclose()

    @pytest.fixture
    def peer(self, broker):
        return broker

    async def wipe(self, broker):
        broker.wipe()
'''
UNREAD = "test_what_a_group_has_not_read_is_never_removed"


def run(folder: Path, *arguments: str, broker: str = "MemoryBroker", cannot: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a broker's suite; return the exit code and what was printed."""
    (folder / "conftest.py").write_text('pytest_plugins = ["outboxkit.testing.certificates"]\n', encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n", encoding="utf-8")
    (folder / "test_broker.py").write_text(SUITE.format(broker=broker, cannot=cannot or {}), encoding="utf-8")
    path = os.pathsep.join(map(str, (ROOT, ROOT / "adapters")))
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:valkey", "-p", "no:cacheprovider", "--tb=no", *arguments)
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_a_suite_that_passes_is_certified(tmp_path: Path) -> None:
    code, printed = run(tmp_path)
    assert code == 0, printed
    assert "MemoryBroker keeps the contract of a broker (65 of 65 cases passed; test_broker.py::TestMemoryBroker)" in printed
    assert "16 of  16  What a broker promises about space: B4" in printed
    assert "FAILED" not in printed


def test_a_failure_that_is_not_declared_fails_the_run_and_is_named(tmp_path: Path) -> None:
    code, printed = run(tmp_path, broker="Hasty")
    assert code == 1, printed
    assert "Hasty does not keep the contract of a broker" in printed
    assert f"  FAILED    {UNREAD}\n" in printed


def test_what_is_declared_is_said_and_fails_nothing(tmp_path: Path) -> None:
    _, printed = run(tmp_path, broker="Hasty")
    failed = [line.split()[1] for line in printed.splitlines() if line.startswith("  FAILED    ")]
    can = "test_the_last_entry_always_stays"
    assert can not in failed
    code, printed = run(tmp_path, broker="Hasty", cannot=dict.fromkeys([*failed, can], "it knows no groups"))
    assert code == 0, printed
    assert "Hasty keeps the contract of a broker but for what it declares" in printed
    assert f"  cannot    {UNREAD}: it knows no groups\n" in printed
    assert f"  can       {can}, although it declares that it cannot" in printed


def test_what_did_not_run_is_not_certified(tmp_path: Path) -> None:
    code, printed = run(tmp_path, "-k", "backlog")
    assert code == 0, printed
    assert "MemoryBroker was not shown to keep the contract of a broker (1 of 65 cases passed" in printed
    assert "  not run   64 cases" in printed


def test_declaring_what_is_no_case_is_a_mistake(tmp_path: Path) -> None:
    code, printed = run(tmp_path, cannot={"test_flying": "no wings"})
    assert code == 4, printed
    assert "declares that it cannot do test_flying, which is no case of its contract" in printed
