"""Type checkers see what the decorators do: `tests/typing` holds what they must accept, and the mistakes they must find."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_mypy_agrees_with_what_the_decorators_promise(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    files = sorted(str(path) for path in (ROOT / "tests" / "typing").glob("[a-z]*.py"))
    # Not the configuration's `packages`, which are everything; the cache is shared with other runs, for speed.
    command = [sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores", "--explicit-package-bases", *files]
    checked = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
