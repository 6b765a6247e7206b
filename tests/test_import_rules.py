"""Imports go downwards only, and importing the core costs and brings in little."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parent.parent
IMPORTED = "import sys, json, outboxkit; print(json.dumps(sorted(sys.modules)))"
TIMED = "import time; start = time.process_time(); import outboxkit; print(time.process_time() - start)"
"""In seconds of the processor: how busy others keep that is no matter here."""

FOREIGN = (
    *("outboxkit_", "outboxkit.cli", "outboxkit.testing"),
    *("aiosqlite", "sqlite3", "redis", "asyncpg", "sqlalchemy", "pydantic", "click", "starlette", "uvicorn", "pytest"),
)


def python(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_the_layers_hold() -> None:
    lint = Path(sysconfig.get_path("scripts")) / "lint-imports"
    result = subprocess.run([lint, "--no-cache"], cwd=ROOT, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_importing_outboxkit_imports_no_adapter_and_no_driver() -> None:
    modules: list[str] = json.loads(python(IMPORTED))
    assert "outboxkit.app" in modules
    assert [module for module in modules if module.startswith(FOREIGN)] == []


def test_what_helps_with_tests_imports_without_any_extra() -> None:
    """Users' tests have brokers and stores in memory from it, adapters their contracts, and the demo its servers."""
    program = """
import sys, importlib, pkgutil
sys.modules |= dict.fromkeys(("pytest", "asyncpg", "sqlalchemy", "psycopg", "hypothesis", "alembic", "pydantic"))
import outboxkit.testing
for found in pkgutil.walk_packages(outboxkit.testing.__path__, "outboxkit.testing."):
    if found.name != "outboxkit.testing.certificates":  # pytest's plugin
        importlib.import_module(found.name)
print(len(sys.modules))
"""
    assert int(python(program)) > 100


def test_asking_for_one_adapter_imports_no_other() -> None:
    program = (
        "import sys, json; from outboxkit.adapters import store_of; store_of('sqlite:///shop.db'); "
        "print(json.dumps(sorted(sys.modules)))"
    )
    modules: list[str] = json.loads(python(program))
    assert "outboxkit_sqlite" in modules
    assert [module for module in modules if module.startswith(("outboxkit_redis", "redis", "sqlalchemy", "asyncpg"))] == []


def test_a_store_on_an_engine_needs_no_driver_but_the_engines() -> None:
    program = (
        "import sys, json; from sqlalchemy.ext.asyncio import create_async_engine as engine; "
        "from outboxkit_sqlalchemy import SQLAlchemyStore; SQLAlchemyStore(engine('postgresql+psycopg://localhost/shop')); "
        "print(json.dumps(sorted(sys.modules)))"
    )
    modules: list[str] = json.loads(python(program))
    assert "outboxkit_postgres.tables" in modules
    assert [module for module in modules if module.startswith(("asyncpg", "alembic", "redis"))] == []


def test_importing_outboxkit_is_quick() -> None:
    python(TIMED)  # compiles what is not compiled yet
    assert min(float(python(TIMED)) for _ in range(3)) <= 0.3
