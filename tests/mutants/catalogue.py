"""The mutants, each with the proofs that have to kill it, the quickest first."""

from typing import NamedTuple

from tests.mutants.copying import Edit
from tests.mutants.proving import Proof, case, chaos, seeds


class Mutant(NamedTuple):
    """The library without one guard.

    Args:
        name: what it does wrong.
        edits: how.
        proofs: what kills it.
        remark: what else there is to know: which other guard stands behind this one, say.
    """

    name: str
    edits: tuple[Edit, ...]
    proofs: tuple[Proof, ...]
    remark: str = ""


_CONTRACTS = "tests/contract"
_POSTGRES = f"{_CONTRACTS}/test_postgres_store.py::TestPostgresStore"
_SQLITE = f"{_CONTRACTS}/test_sqlite_store.py::TestSQLiteStore"
_REDIS = f"{_CONTRACTS}/test_redis_broker.py::TestRedisBroker"

MUTANTS = (
    Mutant(
        "ack before commit",
        (
            Edit(
                "outboxkit/consumer.py",
                "                    done = await self._settler.settle(",
                "                    self._acks.add(linked)\n                    done = await self._settler.settle(",
            ),
        ),
        (case("tests/test_acking.py::test_nothing_is_acked_before_its_effect_is_committed"),),
        "loses nothing by itself: what was acked and not committed is a hole in front of the floor, which is read again, and "
        "above which nothing is trimmed. It costs the wait for that, so the order is a promise of its own",
    ),
    Mutant(
        "id cursor on Postgres",
        (
            Edit(
                "adapters/outboxkit_postgres/ticks.py",
                "WHERE o.xid = x AND o.seq > span.after AND o.seq <= span.low",
                "WHERE false AND o.xid = x AND o.seq > span.after AND o.seq <= span.low",
            ),
        ),
        (
            case(f"{_POSTGRES}::test_a_row_written_first_and_committed_last_is_not_lost"),
            chaos("postgres", 0.3, 6),
        ),
    ),
    Mutant(
        "select-then-insert inbox",
        (
            Edit("adapters/outboxkit_postgres/inbox.py", "        if is_linked(deliveries):\n", "        if False:\n"),
            Edit(
                "adapters/outboxkit_postgres/inbox.py",
                "WITH floor AS (UPDATE {floor} SET ragged = true WHERE id = $1 AND term = $2 RETURNING major, minor), "
                "fresh AS (\n        INSERT INTO",
                "WITH floor AS (SELECT major, minor FROM {floor} WHERE id = $1 AND term = $2), fresh AS (\n"
                "        SELECT d.major, d.minor FROM unnest($3::bigint[], $4::bigint[]) AS d (major, minor), floor\n"
                "        WHERE (d.major, d.minor) > (floor.major, floor.minor) AND NOT EXISTS (SELECT FROM {inbox} i\n"
                "            WHERE i.floor_id = $1 AND i.major = d.major AND i.minor = d.minor)\n"
                "    ), written AS (\n"
                "        INSERT INTO",
            ),
        ),
        (case("tests/guarantees/test_floor_lock.py"), case(f"{_POSTGRES}::test_of_two_who_receive_at_once_one_gets_it")),
        "with the lock on the floor left in place it could break nothing: that lets one transaction at a time look. So the "
        "mutant takes both",
    ),
    Mutant(
        "no inbox, on SQLite",
        (
            Edit(
                "adapters/outboxkit_sqlite/inbox.py",
                "[delivery for delivery in deliveries if delivery.position > floor]",
                "list(deliveries)",
            ),
            Edit(
                "adapters/outboxkit_sqlite/inbox.py",
                "        if self._insert(connection, subscription, above) < len(above):",
                "        if self._insert(connection, subscription, above) < 0:",
            ),
        ),
        (case(f"{_SQLITE}::test_a_delivery_is_new_once"), chaos("sqlite", 0.3, 6)),
    ),
    Mutant(
        "no inbox, on Postgres",
        (
            Edit(
                "adapters/outboxkit_postgres/inbox.py",
                "        return Received(list(fresh.values()))",
                "        return Received(list({delivery.position: delivery for delivery in deliveries}.values()))",
            ),
        ),
        (case(f"{_POSTGRES}::test_a_delivery_is_new_once"), chaos("postgres", 0.3, 6)),
    ),
    Mutant(
        "tick without synchronous commit",
        (
            Edit(
                "adapters/outboxkit_postgres/ticks.py",
                "WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END",
                "WHEN 'remote_apply' THEN 'remote_apply' ELSE current_setting('synchronous_commit') END",
            ),
        ),
        (
            case(
                "tests/test_postgres_outage.py::"
                "test_what_was_read_is_there_after_a_crash_although_its_writers_did_not_wait_for_the_disk"
            ),
            case("tests/guarantees/test_crash.py::test_what_was_relayed_outlasts_a_crash_although_no_commit_waited"),
        ),
    ),
    Mutant(
        "blind XADD in place of compare-and-append",
        (Edit("adapters/outboxkit_redis/append.lua", "if last == ARGV[1] and #ARGV > 2 then", "if #ARGV > 2 then"),),
        (
            case(f"{_REDIS}::test_nothing_is_appended_to_a_stream_that_is_not_there_but_was_expected"),
            chaos("sqlite", 0.3, 14),
        ),
    ),
    Mutant(
        "retrying client",
        (
            Edit(
                "adapters/outboxkit_redis/node.py",
                "            except (RedisError, OSError) as error:\n"
                "                return self._refused(error, commands, _late_seconds(error, began))\n",
                "            except (RedisError, OSError):\n                return await self._round_trip(commands, heard)\n",
            ),
        ),
        (case("tests/test_redis_broker_specifics.py::test_a_read_whose_reply_was_lost_is_not_sent_again_and_pending_has_it"),),
        "loses nothing by itself: an append that is sent again meets the comparison, and entries that a repeated read strands "
        "are a hole, which is read again. It costs the wait for that",
    ),
    Mutant(
        "MAXLEN on XADD",
        (
            Edit(
                "adapters/outboxkit_redis/append.lua",
                "redis.call('XADD', KEYS[1], ARGV[i], 'event'",
                "redis.call('XADD', KEYS[1], 'MAXLEN', 1000, ARGV[i], 'event'",
            ),
        ),
        (case("tests/test_redis_broker_specifics.py::test_thousands_of_entries_in_one_append"),),
    ),
    Mutant(
        "group at $",
        (
            Edit(
                "adapters/outboxkit_redis/subscribe.lua",
                "ARGV[1], ARGV[3], 'MKSTREAM'",
                "ARGV[1], '$', 'MKSTREAM'",
            ),
        ),
        (case(f"{_REDIS}::test_a_group_made_at_the_origin_sees_the_backlog"),),
    ),
    Mutant(
        "swallowed cancellation",
        (
            Edit(
                "outboxkit/cancellation.py",
                "the cancellation is what the caller has to hear\n        raise\n",
                "the cancellation is swallowed\n        return task.result()\n",
            ),
        ),
        (case("tests/test_cancellation.py::test_a_cancelled_task_finishes_the_work_first"),),
    ),
    Mutant(
        "settle a failing message as done",
        (
            Edit(
                "outboxkit/outcomes.py",
                "        if error is None:\n            self.recorded.append(",
                "        if True:\n            self.recorded.append(",
            ),
        ),
        (seeds(120), case("tests/test_consumer.py::test_a_final_exception_is_dead_at_once")),
    ),
    Mutant(
        "the floor is moved over a run wherever it stands",
        (
            Edit(
                "adapters/outboxkit_postgres/floors.py",
                "AND (major, minor) = ($3, $4) AND NOT",
                "AND ($3, $4) IS NOT NULL AND NOT",
            ),
        ),
        (case(f"{_POSTGRES}::test_a_delivery_is_new_once"),),
    ),
    Mutant(
        "the floor is moved over what is known above it, on Postgres",
        (Edit("adapters/outboxkit_postgres/floors.py", " AND NOT ragged\n    RETURNING", "\n    RETURNING"),),
        (case(f"{_POSTGRES}::test_a_run_with_something_settled_before_in_it_brings_only_the_rest"),),
    ),
    Mutant(
        "the floor is moved over what is known above it, on SQLite",
        (
            Edit(
                "adapters/outboxkit_sqlite/inbox.py",
                " and not self._any_above(connection, subscription, floor):",
                ":",
            ),
        ),
        (case(f"{_SQLITE}::test_a_run_with_something_settled_before_in_it_brings_only_the_rest"),),
    ),
    Mutant(
        "the floor is moved over a run with something missing in it",
        (Edit("outboxkit/linked.py", "        if delivery.prev != at or delivery.position <= at:\n", "        if False:\n"),),
        (case(f"{_SQLITE}::test_a_run_with_something_missing_or_twice_in_it_moves_the_floor_as_far_as_it_goes"),),
    ),
    Mutant(
        "what was not tried is taken for settled",
        (Edit("outboxkit/linked.py", "    if first is None or first.position > floor:\n", "    if True:\n"),),
        (case(f"{_SQLITE}::test_what_was_not_tried_of_a_run_comes_again_and_nothing_else_of_it"),),
    ),
    Mutant(
        "floor past a hole, on SQLite",
        (
            Edit(
                "adapters/outboxkit_sqlite/floors.py",
                "            if (prev_major, prev_minor) > at:\n",
                "            if False:\n",
            ),
        ),
        (case(f"{_SQLITE}::test_the_floor_never_passes_a_hole"),),
    ),
    Mutant(
        "floor past a hole, on Postgres",
        (
            Edit(
                "adapters/outboxkit_postgres/floors.py",
                "WHERE h.major IS NULL OR (a.major, a.minor) < (h.major, h.minor)",
                "WHERE true",
            ),
        ),
        (case(f"{_POSTGRES}::test_the_floor_never_passes_a_hole"),),
    ),
    Mutant(
        "SQLite NORMAL with a cut WAL",
        (Edit("adapters/outboxkit_sqlite/store.py", '"FULL" if self._full else "NORMAL"', '"NORMAL"'),),
        (
            case("tests/guarantees/test_power_cut.py"),
            case("tests/test_sqlite_store.py::test_commits_are_durable_unless_another_mode_is_asked_for_by_its_name"),
        ),
    ),
    Mutant(
        "lease not checked, on SQLite",
        (
            Edit(
                "adapters/outboxkit_sqlite/floors.py",
                "        if connection.execute(self._sql(_TERM), (subscription.id,)).fetchone() != (subscription.term,):\n",
                "        if False:\n",
            ),
        ),
        (case(f"{_SQLITE}::test_whoever_lost_a_stream_settles_nothing_more"),),
    ),
    Mutant(
        "lease not checked, on Postgres",
        (
            Edit(
                "adapters/outboxkit_postgres/inbox.py",
                "WHERE id = $1 AND term = $2 RETURNING major, minor), fresh",
                "WHERE id = $1 AND $2::bigint IS NOT NULL RETURNING major, minor), fresh",
            ),
        ),
        (case(f"{_POSTGRES}::test_whoever_lost_a_stream_settles_nothing_more"),),
    ),
    Mutant(
        "several are tried alone at once",
        (Edit("outboxkit/retrying.py", "async with self._slots.alone, self._slots.open:", "async with self._slots.open:"),),
        (case("tests/guarantees/test_poison.py::test_a_message_that_is_handled_beside_it_is_not_taken_for_one_that_kills"),),
    ),
    Mutant(
        "an attempt that lost its stream counts as an end of the process",
        (
            Edit(
                "outboxkit/retrying.py",
                "except (StoreUnavailableError, LeaseLostError, anyio.get_cancelled_exc_class()):",
                "except (StoreUnavailableError, anyio.get_cancelled_exc_class()):",
            ),
        ),
        (case("tests/test_settling.py::test_an_attempt_that_lost_its_stream_is_given_back_unless_another_has_begun_by_then"),),
    ),
    Mutant(
        "a success that a failover lost counts as an end of the process",
        (Edit("outboxkit/retrying.py", "if _attempt(retry) in self._succeeded:", "if False:"),),
        (
            case(
                "tests/test_consumer_failover.py::test_an_attempt_whose_success_a_failover_lost_is_none_that_ended_the_process"
            ),
        ),
    ),
    Mutant(
        "read again for a stream that was lost",
        (Edit("outboxkit/consumer.py", "if stream not in self._reading.subscriptions:", "if False:"),),
        (case("tests/test_chain.py::test_for_an_entry_that_arrives_after_its_stream_was_lost_nothing_is_read_again"),),
    ),
    Mutant(
        "a loss is taken for none",
        (Edit("outboxkit/relay.py", '            return "lost"\n', '            return "go on"\n'),),
        (seeds(120), chaos("sqlite", 0.3, 21)),
    ),
)
