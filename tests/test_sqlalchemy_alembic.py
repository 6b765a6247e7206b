"""Tables made by Alembic or by a `MetaData` are those that `app.migrate()` makes."""

import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Column, Integer, MetaData, Table, create_engine, inspect, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from outboxkit.errors import ConfigurationError
from outboxkit.testing.rows import log_of, new_rows, publish
from outboxkit_sqlalchemy import SQLAlchemyStore, add_tables

ENV = """
from alembic import context
from sqlalchemy import Column, Integer, MetaData, Table, create_engine
from outboxkit_sqlalchemy.alembic import other_names

metadata = MetaData()
Table("sale", metadata, Column("number", Integer, primary_key=True))
url = context.config.get_main_option("sqlalchemy.url")
if context.is_offline_mode():
    context.configure(url=url, target_metadata=metadata)
    with context.begin_transaction():
        context.run_migrations()
else:
    engine = create_engine(url)
    with engine.connect() as connection:
        context.configure(connection=connection, target_metadata=metadata, include_name=other_names())
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()
"""
MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "1", None

def upgrade():
    op.create_table("sale", sa.Column("number", sa.Integer, primary_key=True))
    op.create_outboxkit("shop"{options})

def downgrade():
    op.drop_outboxkit("shop"{options})
    op.drop_table("sale")
"""
TEMPLATE = "${imports if imports else ''}\n${upgrades if upgrades else 'pass'}\n"


class Place:
    """A database, reached by either kind of engine."""

    def __init__(self, url: URL, blocking: URL) -> None:
        self.url = url
        self.blocking = blocking

    def tables(self, schema: str | None = None) -> list[str]:
        engine = create_engine(self.blocking)
        found = sorted(inspect(engine).get_table_names(schema=schema))
        engine.dispose()
        return found

    async def check(self, *, schema: str | None = None) -> None:
        """The tables are complete: nothing differs, and an event goes through them."""
        engine = create_async_engine(self.url)
        store = SQLAlchemyStore(engine, schema=schema)
        assert list(await store.check("shop")) == []
        await store.open("shop")
        await publish(store, new_rows(2))
        assert len(await log_of(store)) == 2
        await store.aclose()
        await engine.dispose()


@pytest.fixture(params=["sqlite+aiosqlite", "postgresql+psycopg"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    driver: str = request.param
    if driver.startswith("sqlite"):
        path = str(tmp_path / "shop.db")
        return Place(URL.create(driver, database=path), URL.create("sqlite", database=path))
    url = make_url(request.getfixturevalue("postgres_url")).set(drivername=driver)
    return Place(url, url)


def project(folder: Path, url: URL, options: str = "") -> Config:
    """Return an Alembic project with one migration."""
    (folder / "versions").mkdir()
    (folder / "env.py").write_text(ENV, encoding="utf-8")
    (folder / "script.py.mako").write_text(TEMPLATE, encoding="utf-8")
    (folder / "versions" / "first.py").write_text(MIGRATION.format(options=options), encoding="utf-8")
    config = Config()
    config.set_main_option("script_location", str(folder))
    config.set_main_option("path_separator", "os")
    config.set_main_option("sqlalchemy.url", url.render_as_string(hide_password=False))
    return config


async def test_a_migration_makes_what_migrate_makes_and_takes_it_back(place: Place, tmp_path: Path) -> None:
    config = project(tmp_path, place.blocking)
    command.upgrade(config, "head")
    await place.check()
    command.downgrade(config, "base")
    assert place.tables() == ["alembic_version"]
    command.upgrade(config, "head")
    await place.check()


def test_autogenerate_leaves_the_tables_alone(place: Place, tmp_path: Path) -> None:
    config = project(tmp_path, place.blocking)
    command.upgrade(config, "head")
    command.check(config)  # it raises when anything would be generated


async def test_a_migration_may_name_the_schema(postgres_url: str, tmp_path: Path) -> None:
    url = make_url(postgres_url).set(drivername="postgresql+psycopg")
    config = project(tmp_path, url, ', schema="public"')
    command.upgrade(config, "head")
    await Place(url, url).check(schema="public")


def test_offline_mode_writes_a_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = project(tmp_path, URL.create("sqlite", database="shop.db"))
    command.upgrade(config, "head", sql=True)
    script = capsys.readouterr().out
    with sqlite3.connect(":memory:") as database:
        database.executescript(script)
        assert database.execute("SELECT source FROM outboxkit_schema").fetchall() == [("shop",)]
    database.close()


def test_offline_mode_cannot_ask_for_the_schema(tmp_path: Path) -> None:
    config = project(tmp_path, make_url("postgresql+psycopg://localhost/shop"))
    with pytest.raises(ConfigurationError, match="schema has to be named"):
        command.upgrade(config, "head", sql=True)


async def test_create_all_makes_what_migrate_makes_and_drop_all_drops_it(place: Place) -> None:
    metadata = MetaData()
    Table("sale", metadata, Column("number", Integer, primary_key=True))
    add_tables(metadata, "shop")
    engine = create_async_engine(place.url)
    for _ in range(2):  # repeating it does nothing
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
    await place.check()
    assert "sale" in place.tables()
    for _ in range(2):
        async with engine.begin() as connection:
            await connection.run_sync(metadata.drop_all)
    assert place.tables() == []
    await engine.dispose()


async def test_create_all_and_drop_all_of_some_tables_leave_the_others_alone(place: Place) -> None:
    metadata = MetaData()
    sale, note = (Table(name, metadata, Column("number", Integer, primary_key=True)) for name in ("sale", "note"))
    add_tables(metadata, "shop")
    engine = create_async_engine(place.url)

    async def run(ddl: Callable[..., None], *tables: Table) -> list[str]:
        async with engine.begin() as connection:
            await connection.run_sync(partial(ddl, tables=list(tables)))
        return place.tables()

    assert await run(metadata.create_all, sale) == ["sale"]
    everything = await run(metadata.create_all, sale, note)
    assert "outboxkit_outbox" in everything
    assert await run(metadata.drop_all, note) == [table for table in everything if table != "note"]
    assert await run(metadata.drop_all) == [table for table in everything if table != "note"]
    await place.check()
    assert await run(metadata.drop_all, sale, note) == []
    await engine.dispose()
