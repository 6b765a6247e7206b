"""The contract of a store as a pytest suite; see `StoreContract`."""

from outboxkit.errors import SchemaError
from outboxkit.store import Store
from outboxkit.testing.contract_store_grouped import StoreGroupedContract
from outboxkit.testing.contract_store_inbox import StoreInboxContract
from outboxkit.testing.contract_store_later import StoreLaterContract
from outboxkit.testing.contract_store_lease import StoreLeaseContract
from outboxkit.testing.contract_store_letters import StoreLettersContract
from outboxkit.testing.contract_store_linked import StoreLinkedContract
from outboxkit.testing.contract_store_log import StoreLogContract
from outboxkit.testing.contract_store_rebase import StoreRebaseContract
from outboxkit.testing.contract_store_retained import StoreRetainedContract
from outboxkit.testing.contract_store_roster import StoreRosterContract
from outboxkit.testing.contract_store_status import StoreStatusContract
from outboxkit.testing.contract_store_transactions import StoreTransactionsContract
from outboxkit.testing.contract_store_waiting import StoreWaitingContract
from outboxkit.testing.contract_store_writers import StoreWritersContract
from outboxkit.testing.rows import SOURCE, log_of, new_rows, new_stream, publish
from outboxkit.testing.streams import raised


class StoreContract(
    StoreLogContract,
    StoreWritersContract,
    StoreTransactionsContract,
    StoreGroupedContract,
    StoreRebaseContract,
    StoreLaterContract,
    StoreLeaseContract,
    StoreInboxContract,
    StoreLinkedContract,
    StoreWaitingContract,
    StoreLettersContract,
    StoreRosterContract,
    StoreStatusContract,
    StoreRetainedContract,
):
    """Everything `outboxkit.store.Store` promises, each promise as a test named for it.

    Subclass it in a test module, with two pytest fixtures and one method, and let pytest run its ``async def`` tests (with
    pytest-asyncio's ``asyncio_mode = auto``, for one)::

        class TestMyStore(StoreContract):
            @pytest.fixture
            async def store(self) -> AsyncIterator[MyStore]: ...  # migrated and opened for outboxkit.testing.rows.SOURCE

            @pytest.fixture
            async def peer(self, store: MyStore) -> AsyncIterator[MyStore]: ...  # another connection to the same database

            def fresh(self) -> MyStore: ...                       # of an empty database, not migrated and not opened
    """

    def fresh(self) -> Store:
        """Return a store of an empty database, neither migrated nor opened."""
        raise NotImplementedError

    async def test_an_unmigrated_database_is_refused_with_the_next_step(self) -> None:
        error = await raised(SchemaError, self.fresh().open(SOURCE))
        assert "migrate" in str(error)

    async def test_migrating_says_what_it_did_and_does_it_once(self) -> None:
        store = self.fresh()
        assert await store.migrate(SOURCE)
        assert list(await store.migrate(SOURCE)) == []
        await store.open(SOURCE)
        await publish(store, new_rows())
        assert list(await store.migrate(SOURCE)) == [], "also while it is open"
        assert len(await log_of(store)) == 1
        await store.aclose()

    async def test_another_apps_outbox_is_refused_by_both_names(self) -> None:
        store = self.fresh()
        await store.migrate(SOURCE)
        for refused in (store.open("another"), store.migrate("another")):
            error = await raised(SchemaError, refused)
            assert SOURCE in str(error)
            assert "another" in str(error)

    async def test_a_check_of_fresh_tables_finds_nothing(self) -> None:
        store = self.fresh()
        await store.migrate(SOURCE)
        assert list(await store.check(SOURCE)) == []
        await store.open(SOURCE)
        await publish(store, new_rows())
        assert list(await store.check(SOURCE)) == [], "also while it is open"
        assert len(await log_of(store)) == 1
        await store.aclose()

    async def test_a_check_names_missing_tables_and_another_owner(self) -> None:
        store = self.fresh()
        (missing,) = await store.check(SOURCE)
        assert "migrate" in missing
        await store.migrate(SOURCE)
        (foreign,) = await store.check("another")
        assert SOURCE in foreign
        assert "another" in foreign

    async def test_an_id_of_a_subscription_is_not_given_out_again_by_a_database_that_begins_anew(self) -> None:
        """As one does that fails over: whoever had it before must not settle another stream's messages."""
        given: list[int] = []
        for _ in range(2):
            store = self.fresh()
            await store.migrate(SOURCE)
            await store.open(SOURCE)
            given += [(await store.subscribe("group", new_stream()))[0].id for _ in range(2)]
            await store.aclose()
        assert len(set(given)) == len(given)

    async def test_closing_twice_and_opening_again_is_fine(self) -> None:
        store = self.fresh()
        await store.migrate(SOURCE)
        await store.aclose()
        for _ in range(2):
            await store.open(SOURCE)
            await publish(store, new_rows())
            await store.aclose()
            await store.aclose()
        await store.open(SOURCE)
        assert len(await log_of(store)) == 2
        await store.aclose()
