"""The log on Postgres: who is not waited for, what it costs, and that whatever inserts a row has published a message."""

import json
import re
import uuid
from typing import Any

import anyio
import asyncpg
import pytest

from outboxkit.cancellation import alongside
from outboxkit.encoding import partition
from outboxkit.errors import SchemaError, StoreError
from outboxkit.message import LAST, ORIGIN, Envelope, OutboxRow, Position, Stream, new_id
from outboxkit.testing.rows import EVERYTHING, envelopes, log_of, new_rows, publish
from outboxkit_postgres import rebasing, ticks
from outboxkit_postgres.connection import whole_transaction
from outboxkit_postgres.link import BY_INDEX
from tests.postgres import SOURCE, ask, connected, opened
from tests.postgres_cycles import PostgresCycles
from tests.waiting import until


async def test_a_transaction_of_another_database_is_not_waited_for(postgres_url: str, postgres_server_url: str) -> None:
    async with opened(postgres_url) as store, connected(postgres_server_url) as elsewhere, elsewhere.transaction():
        await elsewhere.fetchval("SELECT pg_current_xact_id()")
        for _ in range(3):
            rows = await publish(store, new_rows(2))
            assert envelopes(await log_of(store))[-2:] == envelopes(rows)


async def test_a_prepared_transaction_is_not_waited_for_and_appears_once_it_is_committed(postgres_url: str) -> None:
    async with opened(postgres_url) as store, connected(postgres_url) as outside:
        for name, ending in (("kept", "COMMIT PREPARED"), ("dropped", "ROLLBACK PREPARED")):
            name = f"{name}-{new_id()}"
            await outside.execute("BEGIN")
            (row,) = new_rows()
            await store.write(outside, [row])
            await outside.execute(f"PREPARE TRANSACTION '{name}'")
            before = await log_of(store)
            quick = await publish(store, new_rows(2))
            assert envelopes(await log_of(store)) == envelopes([*before, *quick])
            await outside.execute(f"{ending} '{name}'")
            late = [row] if ending.startswith("COMMIT") else []
            assert envelopes(await log_of(store)) == envelopes([*before, *quick, *late])


async def test_a_number_taken_before_the_transaction_has_its_id_is_no_reason_to_lose_a_row(postgres_url: str) -> None:
    """The columns' order makes the id first; a row that some tool wrote the other way round is read all the same."""
    async with opened(postgres_url) as store, connected(postgres_url) as outside:
        written: list[str] = []
        for _ in range(3):
            low = await outside.fetchval("SELECT nextval('outboxkit_outbox_seq_seq')")
            (row,) = new_rows()
            await publish(store, new_rows())
            await log_of(store)
            await outside.execute(
                "INSERT INTO outboxkit_outbox (seq, id, topic, partition, key, type, envelope) OVERRIDING SYSTEM VALUE "
                "VALUES ($1, $2, $3, $4, $5, $6, $7)",
                low,
                *row[:6],
            )
            written.append(row.id)
            assert envelopes(await log_of(store))[-1] == row.envelope


async def test_a_sequence_that_starts_again_hides_no_row(postgres_url: str) -> None:
    """As after TRUNCATE ... RESTART IDENTITY, or a sequence set by hand: a low number in a late tick."""
    async with opened(postgres_url) as store:
        rows: list[OutboxRow] = []
        for at in (1, 1000, 2):
            await ask(postgres_url, "SELECT setval('outboxkit_outbox_seq_seq', $1, false)", at)
            rows += await publish(store, new_rows())
            await log_of(store)  # a tick each
        assert envelopes(await log_of(store, page=1)) == envelopes(rows)


async def test_a_tick_that_went_away_again_is_told_once(postgres_url: str) -> None:
    """It held nothing, so the cursor is below it all the same."""
    async with opened(postgres_url) as store:
        await publish(store, new_rows())
        (entry,) = await log_of(store)
        await ask(postgres_url, "INSERT INTO outboxkit_tick (tick, snapshot, high) VALUES (2, pg_current_snapshot(), 1)")
        assert not await store.read(entry.position, 1, EVERYTHING)
        await ask(postgres_url, "DELETE FROM outboxkit_tick WHERE tick = 2")
        with pytest.raises(StoreError, match="back in time"):
            await store.read(entry.position, 1, EVERYTHING)
        rows = await publish(store, new_rows())
        assert envelopes(await store.read(entry.position, 10, EVERYTHING)) == envelopes(rows)


async def test_a_tick_table_that_somebody_emptied_is_told_by_name(postgres_url: str) -> None:
    async with opened(postgres_url) as store:
        await publish(store, new_rows())
        await ask(postgres_url, "DELETE FROM outboxkit_tick")
        with pytest.raises(SchemaError, match=r"outboxkit_tick is empty.*restore"):
            await log_of(store)


# what it costs


async def test_a_unit_of_work_costs_one_statement_more_for_all_its_events(postgres_url: str) -> None:
    async with opened(postgres_url, "max_connections=2") as store:
        counts: list[int] = []
        for count in (0, 1, 50):
            said: list[list[Any]] = []
            for _ in range(4):  # the driver asks for types of values once on each connection
                async with store.transaction() as transaction:
                    said.append([])
                    transaction.connection.add_query_logger(said[-1].append)
                    await transaction.connection.execute("SELECT 1")
                    await transaction.commit(new_rows(count))
            counts.append(min(sum("RESET" not in each.query for each in queries) for queries in said))
        without, one, many = counts
        assert one <= without + 1
        assert many == one


async def test_relaying_leaves_no_dead_rows(postgres_url: str) -> None:
    """L5: nothing is marked, locked or deleted."""
    async with opened(postgres_url) as store:
        for _ in range(10):
            await publish(store, new_rows(100))
            assert await store.read(ORIGIN, 100, EVERYTHING)
        assert len(await log_of(store)) == 1000
    table = "FROM pg_stat_user_tables WHERE relname = 'outboxkit_outbox'"
    await until(lambda: ask(postgres_url, f"SELECT n_tup_ins {table}"), [(1000,)].__eq__)
    assert await ask(postgres_url, f"SELECT n_tup_upd, n_tup_del, n_tup_hot_upd, n_dead_tup {table}") == [(0, 0, 0, 0)]


async def test_an_empty_look_makes_no_tick_and_takes_no_transaction_id(postgres_url: str) -> None:
    async with opened(postgres_url) as store:
        await publish(store, new_rows())
        await log_of(store)
        xmax = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text, (SELECT count(*) FROM outboxkit_tick)"
        before = await ask(postgres_url, xmax)
        for _ in range(10):
            assert not await store.read((await log_of(store))[-1].position, 10, EVERYTHING)
        assert await ask(postgres_url, xmax) == before


async def test_a_page_of_a_large_log_keeps_to_the_indexes_and_is_not_compiled(postgres_url: str) -> None:
    """Right after a bulk load, without statistics, where the planner would rather sort all of it for each page."""
    async with opened(postgres_url) as store, connected(postgres_url) as outside:
        await outside.execute(
            "INSERT INTO outboxkit_outbox (id, topic, partition, type, envelope) "
            "SELECT gen_random_uuid(), 'topic', 0, 'type', repeat('e', 100)::bytea FROM generate_series(1, 60000)"
        )
        (first,) = await store.read(ORIGIN, 1, EVERYTHING)
        statement = store.outbox.names.sql(vars(ticks)["_READ"])
        async with whole_transaction(outside, BY_INDEX):
            for minor in (0, 30_000, 60_000):
                values = (first.position.major, minor, 500, EVERYTHING)
                plan = "\n".join(line for (line,) in await outside.fetch(f"EXPLAIN (ANALYZE, BUFFERS) {statement}", *values))
                assert "JIT" not in plan
                assert not re.search(r"Seq Scan on outboxkit|Bitmap", plan)
                assert _blocks(plan) < 200, plan


def _blocks(plan: str) -> int:
    return sum(int(blocks) for blocks in re.findall(r"\A.*?hit=(\d+)", plan, re.DOTALL))


async def test_what_stands_behind_empty_ticks_is_not_read_to_find_where_it_begins(postgres_url: str) -> None:
    async with opened(postgres_url) as store, connected(postgres_url) as outside:
        await publish(store, new_rows())
        await log_of(store)
        for tick in range(1, 4):
            await outside.execute(
                "INSERT INTO outboxkit_outbox (id, topic, partition, type, envelope) "
                "SELECT gen_random_uuid(), 'topic', 0, 'type', repeat('e', 100)::bytea FROM generate_series(1, 20000)"
            )
            assert (await store.read(Position(tick, LAST.minor), 1, EVERYTHING)).end.major == tick + 1
        await outside.execute("DELETE FROM outboxkit_outbox WHERE seq = 1")
        statement = store.outbox.names.sql(vars(ticks)["_EMPTY"])
        async with whole_transaction(outside, BY_INDEX):
            values = (1, 0, vars(ticks)["_FAR"])
            plan = "\n".join(line for (line,) in await outside.fetch(f"EXPLAIN (ANALYZE, BUFFERS) {statement}", *values))
        assert _blocks(plan) < 200, plan


async def test_ticks_of_which_nothing_is_left_are_passed_over_by_the_hundred(postgres_url: str) -> None:
    """After a rebase, say, and until retention removes them."""
    async with opened(postgres_url) as store, PostgresCycles(postgres_url).running() as cycles:
        await publish(store, new_rows())
        (first,) = await log_of(store)
        await ask(
            postgres_url,
            "INSERT INTO outboxkit_tick (tick, snapshot, high) SELECT tick + number, snapshot, high + number "
            "FROM (SELECT * FROM outboxkit_tick ORDER BY tick DESC LIMIT 1) last, generate_series(1, 1200) number",
        )
        await ask(postgres_url, "SELECT setval('outboxkit_outbox_seq_seq', (SELECT max(high) FROM outboxkit_tick))")
        rows = await publish(store, new_rows())
        async with opened(cycles.url) as other:
            await other.read(first.position.before(), 1, EVERYTHING)
            before = cycles.count
            page = await other.read(first.position, 2, EVERYTHING)
            assert envelopes(page) == envelopes(rows)
            assert page.end.major == first.position.major + 1201
            assert cycles.count - before <= 50


async def test_ticks_with_a_row_here_and_there_are_passed_over_up_to_the_next_row(postgres_url: str) -> None:
    async with opened(postgres_url) as store, PostgresCycles(postgres_url).running() as cycles:
        rows = list(await publish(store, new_rows()))
        await log_of(store)
        for _ in range(3):
            await ask(
                postgres_url,
                "INSERT INTO outboxkit_tick (tick, snapshot, high) SELECT tick + number, snapshot, high + number "
                "FROM (SELECT * FROM outboxkit_tick ORDER BY tick DESC LIMIT 1) last, generate_series(1, 400) number",
            )
            await ask(postgres_url, "SELECT setval('outboxkit_outbox_seq_seq', (SELECT max(high) FROM outboxkit_tick))")
            rows += await publish(store, new_rows())
            await store.read(ORIGIN, 1, EVERYTHING)  # makes the tick of it
        async with opened(cycles.url) as other:
            before, page = cycles.count, await other.read(ORIGIN, 1, EVERYTHING)
            found = list(envelopes(page))
            while len(found) < len(rows):
                page = await other.read(page.end, 1, EVERYTHING)
                found += envelopes(page)
            assert found == envelopes(rows)
            assert cycles.count - before <= 120


async def test_what_a_rebase_moves_of_a_large_log_is_found_by_the_indexes(postgres_url: str) -> None:
    """While it holds off all who write: it may not look at what stands below, nor at all ticks for each row."""
    insert = (
        "INSERT INTO outboxkit_outbox (id, topic, partition, type, envelope) "
        "SELECT gen_random_uuid(), 'topic', number % 2, 'type', ('e' || gen_random_uuid())::bytea "
        "FROM generate_series(1, $1) number"
    )
    async with opened(postgres_url) as store, connected(postgres_url) as outside:
        await outside.execute(insert, 20_000)
        await store.read(ORIGIN, 1, EVERYTHING)
        async with connected(postgres_url) as slow, slow.transaction():
            await slow.execute(insert, 10)
            for _ in range(200):  # a tick each
                await outside.execute(insert, 10)
                await store.read(ORIGIN, 1, EVERYTHING)
        await store.read(ORIGIN, 1, EVERYTHING)
        await outside.execute(insert, 10)  # of no tick yet
        statement = store.outbox.names.sql(vars(rebasing)["_ABOVE"])
        values = (150, ["topic"], LAST.minor, [0], [150], [0])
        async with whole_transaction(outside, BY_INDEX):
            plan = "\n".join(line for (line,) in await outside.fetch(f"EXPLAIN (ANALYZE, BUFFERS) {statement}", *values))
        assert "JIT" not in plan
        assert not re.search(r"Seq Scan on outboxkit|Bitmap", plan)
        assert "outbox_xid" in plan
        read = sum(int(blocks) for blocks in re.findall(r"\A.*?hit=(\d+)", plan, re.DOTALL))
        assert read < 3000, plan
        # All above one tick of the first stream is moved, and only that.
        stream = Stream("topic", 0, SOURCE)
        log = [entry for entry in await log_of(store, page=1000) if entry.stream == stream]
        agreed, above = log[-300].position, envelopes(log[-299:])
        assert await store.rebase({stream: (agreed, Position(1000, 0))}) == 299
        log = [entry for entry in await log_of(store, page=1000) if entry.stream == stream]
        assert envelopes(log[-299:]) == above
        assert log[-300].position == agreed
        assert log[-299].position > Position(1000, 0)


# publishing in SQL


CALL = "SELECT outboxkit_publish($1, $2, $3, $4::text::jsonb)"


async def test_what_a_unit_of_work_publishes_in_sql_is_looked_for_soon_here_and_elsewhere(postgres_url: str) -> None:
    async with opened(postgres_url) as store, opened(postgres_url) as peer:
        for reader in (store, peer):
            await log_of(reader)
            async with alongside(reader.wait(60.0)) as woken:
                async with store.transaction() as transaction:
                    await transaction.connection.fetch(CALL, "orders", "order-7", "order.placed", "{}")
                    await transaction.commit()
                with anyio.fail_after(10):
                    await woken
                assert await log_of(reader)


async def test_what_sql_publishes_is_an_envelope_like_any_other(postgres_url: str) -> None:
    async with opened(postgres_url) as store:
        data = {"total": 12.5, "none": None, "list": [None, {"deep": None}], "text": 'ü \u2028 無 \U0001f4a5 \\ " }'}
        ((id,),) = await ask(postgres_url, CALL, "orders", "order-7", "order.placed", json.dumps(data))
        (entry,) = await log_of(store)
        envelope = Envelope.decode(entry.envelope)
        assert (envelope.id, envelope.source, envelope.type, envelope.subject) == (str(id), SOURCE, "order.placed", "order-7")
        assert json.loads(bytes(envelope.data)) == data
        assert uuid.UUID(envelope.id).version == 7
        assert uuid.UUID(envelope.id).variant == uuid.RFC_4122
        assert envelope.time is not None
        ((now,),) = await ask(postgres_url, "SELECT clock_timestamp()")
        assert abs((now - envelope.time).total_seconds()) < 60
        assert abs((uuid.UUID(envelope.id).int >> 80) / 1000 - envelope.time.timestamp()) < 0.01
        headers = json.loads(entry.envelope)
        assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", headers["traceparent"])
        assert entry.stream == (("orders"), partition("order-7", 8), SOURCE)


async def test_sql_chooses_the_same_partition_as_python(postgres_url: str) -> None:
    keys = [*(f"key-{number}" for number in range(60)), "ü", "無", "\U0001f4a5", "a b", "'", "k" * 1024, "ü" * 512]
    topics = {"plain": 8, "wide": 64, "odd": 7, "one": 1, "huge": 65_536}
    async with opened(postgres_url) as store:
        await store.aclose()
        await store.open(SOURCE, {topic: count for topic, count in topics.items() if topic != "plain"})
        async with connected(postgres_url) as outside:
            for topic in topics:
                for key in keys:
                    await outside.fetchval(CALL, topic, key, "type", "{}")
        for topic, key, number in await ask(postgres_url, "SELECT topic, key, partition FROM outboxkit_outbox"):
            assert number == partition(key, topics[topic]), (topic, key)
        assert len(await log_of(store)) == len(topics) * len(keys)


async def test_a_topic_that_no_longer_has_its_own_number_of_partitions_has_eight(postgres_url: str) -> None:
    async with opened(postgres_url) as store:
        for known in ({"orders": 64}, {}):
            await store.aclose()
            await store.open(SOURCE, known)
            await ask(postgres_url, CALL, "orders", "key-3", "type", "{}")
    numbers = await ask(postgres_url, "SELECT partition FROM outboxkit_outbox ORDER BY seq")
    assert numbers == [(partition("key-3", 64),), (partition("key-3", 8),)]


async def test_a_message_without_a_key_goes_by_its_id(postgres_url: str) -> None:
    async with opened(postgres_url) as store:
        ((id,),) = await ask(postgres_url, CALL, "orders", None, "order.placed", "7")
        (entry,) = await log_of(store)
        assert entry.stream.partition == partition(str(id), 8)
        assert Envelope.decode(entry.envelope).subject is None


@pytest.mark.parametrize(
    "values",
    [
        (None, "k", "t", "{}"),
        ("", "k", "t", "{}"),
        ("a b", "k", "t", "{}"),
        (".hidden", "k", "t", "{}"),
        ("t" * 65, "k", "t", "{}"),
        ("topic\n", "k", "t", "{}"),
        ("topic", "", "t", "{}"),
        ("topic", "k" * 1025, "t", "{}"),
        ("topic", "k", None, "{}"),
        ("topic", "k", "t y", "{}"),
        ("topic", "k", "t", None),
        ("topic", "k", "t", json.dumps("x" * 1_048_576)),
    ],
    ids=lambda values: repr(values)[:40],
)
async def test_sql_that_could_publish_no_message_is_refused(postgres_url: str, values: tuple[str | None, ...]) -> None:
    async with opened(postgres_url) as store:
        with pytest.raises((asyncpg.InvalidParameterValueError, asyncpg.ProgramLimitExceededError), match="outboxkit_publish"):
            await ask(postgres_url, CALL, *values)
        assert not await log_of(store)


async def test_triggers_and_plain_inserts_publish_and_rolled_back_ones_do_not(postgres_url: str) -> None:
    async with opened(postgres_url) as store, connected(postgres_url) as outside:
        await outside.execute(
            """
            CREATE TABLE sale (number integer);
            CREATE FUNCTION told() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                PERFORM outboxkit_publish('sales', NEW.number::text, 'sale.made', jsonb_build_object('number', NEW.number));
                RETURN NEW;
            END $$;
            CREATE TRIGGER told AFTER INSERT ON sale FOR EACH ROW EXECUTE FUNCTION told();
            """
        )
        await outside.execute("BEGIN; INSERT INTO sale VALUES (0); ROLLBACK")
        await outside.execute("INSERT INTO sale VALUES (1), (2)")
        row = OutboxRow(str(new_id()), "sales", 0, None, "sale.made", b"whatever")
        await outside.execute(
            "INSERT INTO outboxkit_outbox (id, topic, partition, key, type, envelope) VALUES ($1, $2, $3, $4, $5, $6)", *row[:6]
        )
        log = await log_of(store)
        assert [json.loads(entry.envelope)["data"]["number"] for entry in log[:2]] == [1, 2]
        assert log[2].envelope == row.envelope
        assert len(log) == 3


async def test_a_row_that_could_be_no_message_is_refused(postgres_url: str) -> None:
    good: dict[str, object] = {
        "id": str(new_id()),
        "topic": "topic",
        "partition": 0,
        "key": None,
        "type": "type",
        "envelope": b"{}",
    }
    changes: list[tuple[str, object]] = [("topic", None), ("topic", ""), ("topic", "t" * 65), ("topic", "a b")]
    changes += [("partition", -1), ("partition", None), ("id", None), ("type", None), ("envelope", None), ("envelope", b"")]
    async with opened(postgres_url) as store, connected(postgres_url) as outside:
        for name, value in changes:
            row = {**good, name: value}
            places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
            with pytest.raises(asyncpg.IntegrityConstraintViolationError):
                await outside.execute(f"INSERT INTO outboxkit_outbox ({', '.join(row)}) VALUES ({places})", *row.values())
        assert not await log_of(store)


async def test_publishing_in_a_database_of_another_encoding_gives_the_same_envelope(postgres_url: str) -> None:
    name = f"latin_{new_id().hex}"
    await ask(postgres_url, f"CREATE DATABASE {name} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    latin = postgres_url.rpartition("/")[0] + f"/{name}"
    try:
        async with opened(latin) as store:
            await ask(latin, CALL, "orders", "clé", "order.placed", '{"name": "Zoë"}')
            (entry,) = await log_of(store)
            envelope = Envelope.decode(entry.envelope)
            assert (envelope.subject, json.loads(bytes(envelope.data))) == ("clé", {"name": "Zoë"})
            assert entry.stream.partition == partition("clé", 8)
    finally:
        await ask(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")
