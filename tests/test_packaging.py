"""The wheel holds what is needed, nothing else, and every entry point leads somewhere."""

import email
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ADAPTERS = ("outboxkit_sqlite", "outboxkit_postgres", "outboxkit_sqlalchemy", "outboxkit_redis")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def metadata(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = [path for path in wheel.namelist() if path.endswith(f".dist-info/{name}")]
    return wheel.read(path).decode()


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {path.partition("/")[0] for path in wheel.namelist()}
    assert tops == {"outboxkit", *ADAPTERS, f"outboxkit-{version('outboxkit')}.dist-info"}


@pytest.mark.parametrize(
    "path",
    [
        "outboxkit/__init__.py",
        "outboxkit/py.typed",
        "outboxkit/cli/__init__.py",
        "outboxkit/cli/newsletter/newsletter.py",
        "outboxkit/cli/newsletter/storage.py",
        "outboxkit/cli/newsletter/subscriptions.py",
        "outboxkit/testing/contract_store.py",
        "outboxkit_sqlite/py.typed",
        "outboxkit_sqlite/schema.sql",
        "outboxkit_sqlite/broker_schema.sql",
        "outboxkit_postgres/py.typed",
        "outboxkit_postgres/schema.sql",
        "outboxkit_postgres/publish.sql",
        "outboxkit_sqlalchemy/py.typed",
        "outboxkit_redis/py.typed",
        "outboxkit_redis/append.lua",
        "outboxkit_redis/subscribe.lua",
        "outboxkit_redis/trim.lua",
    ],
)
def test_the_wheel_holds_what_is_no_code_too(wheel: zipfile.ZipFile, path: str) -> None:
    assert path in wheel.namelist()


def test_every_source_file_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    for folder, package in (("", "outboxkit"), *(("adapters", adapter) for adapter in ADAPTERS)):
        base = ROOT / folder
        files = [path for path in (base / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        assert {str(path.relative_to(base)) for path in files} <= set(wheel.namelist())


def test_nothing_in_the_wheel_is_a_test_or_left_over(wheel: zipfile.ZipFile) -> None:
    unwanted = ("tests", "benchmarks", "examples", "docs", "adapters", "__pycache__", "conftest.py")
    names = [path for path in wheel.namelist() if set(path.split("/")) & set(unwanted) or path.endswith((".pyc", ".db"))]
    assert names == []


def test_the_metadata_say_what_it_is(wheel: zipfile.ZipFile) -> None:
    headers = email.message_from_string(metadata(wheel, "METADATA"))
    assert (headers["Name"], headers["Version"]) == ("outboxkit", version("outboxkit"))
    assert headers["Requires-Python"] == ">=3.11"
    assert headers["License-Expression"] == "MIT"
    assert "Typing :: Typed" in headers.get_all("Classifier", [])
    assert headers["Summary"]
    assert headers["Description-Content-Type"] == "text/markdown"
    assert headers.get_payload()
    required = {
        line.split(";")[0].split(">")[0].split("<")[0] for line in headers.get_all("Requires-Dist", []) if "extra" not in line
    }
    assert {"anyio", "msgspec"} <= required
    assert not required & {"pytest", "pydantic", "hypothesis"}


def test_the_wheel_names_the_entry_points_of_its_adapters(wheel: zipfile.ZipFile) -> None:
    text = metadata(wheel, "entry_points.txt")
    for line in (
        "outboxkit = outboxkit.cli:main",
        "[outboxkit.stores]",
        "[outboxkit.brokers]",
        "redis = outboxkit_redis:RedisBroker",
    ):
        assert line in text
    assert "sqlite = outboxkit_sqlite:SQLiteStore" in text


@pytest.mark.parametrize("group", ["outboxkit.stores", "outboxkit.brokers", "console_scripts"])
def test_every_entry_point_loads(group: str) -> None:
    found = [entry for entry in entry_points(group=group) if entry.value.startswith("outboxkit")]
    assert found
    for entry in found:
        assert callable(entry.load())
