"""Publishing in a session of the user's own: which ones can be told to be of this store, and hearing of their commits."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, event, exc
from sqlalchemy.orm import Session, SessionTransaction

from outboxkit.errors import ConfigurationError
from outboxkit.message import OutboxRow
from outboxkit_sqlalchemy.message import OutboxMessage, delayed_class, message_class

COMMITS_EACH = (
    "this connection commits each statement by itself (isolation_level='AUTOCOMMIT'), so that the event would be published "
    "whatever becomes of the rows it tells of: publish on one that does not"
)

_HEARD = "outboxkit_heard"


class Committed(Protocol):
    """Hears of commits."""

    def __call__(self, *, by_another: bool) -> None:
        """A session was committed; `by_another`: what it joined is not."""
        ...


class _Heard:
    """What is known of a session that events were published in."""

    def __init__(self) -> None:
        self.is_pending = False
        """Whether it has rows of ours that are not committed."""
        self.dropped: list[OutboxMessage] = []
        """Rows that it dropped before it had written them: by `expunge_all`, say, or to roll back."""
        self._held: list[OutboxMessage] = []
        """Rows that it was given back in a savepoint: of one that is undone SQLAlchemy tells only if somebody holds it."""

    def bring_back(self, session: Session) -> None:
        """Give the session back what it dropped: what the events tell of may be written already, and will be committed."""
        session.add_all(self.dropped)
        self._held = [*self._held, *self.dropped] if session.in_nested_transaction() else []
        self.dropped.clear()

    def forget_all(self) -> None:
        """After the end of the transaction, however it ended: what it has not written it never will."""
        self.dropped.clear()
        self._held.clear()

    def forget_undone(self, ended: SessionTransaction) -> None:
        """After a rollback: what was published within it is not to be brought back."""
        self.dropped = [row for row in self.dropped if not _is_within(row.published_in, ended)]


def _is_within(transaction: SessionTransaction | None, outer: SessionTransaction) -> bool:
    while transaction is not None and transaction is not outer:
        transaction = transaction.parent
    return transaction is outer


class Publisher:
    """Adds outbox rows to sessions.

    Args:
        engine: the store's.
        require_kept: raises when a connection, in a session's flush, is none to publish on.
        committed: told, in whatever thread it happens, that a session with rows of ours was committed, and whether its
            transaction is another's to commit.
    """

    def __init__(self, engine: Engine, require_kept: Callable[[Connection], None], committed: Committed) -> None:
        self._engine = engine
        self._require_kept = require_kept
        self._committed = committed

    def add(self, session: Session, rows: Sequence[OutboxRow], prefix: str, schema: str | None) -> None:
        """Add rows to a session, which writes them at its flush.

        Raises:
            ConfigurationError: the session writes into another database.
        """
        mapped = message_class(prefix, schema)
        self.require_own(self._bind(session, mapped))
        delayed = delayed_class(prefix, schema)
        heard = self._listen(session)
        heard.bring_back(session)
        added = [mapped(row) if row.due is None else delayed(row) for row in rows]
        session.add_all(added)
        within = session.get_nested_transaction() or session.get_transaction()
        for row in added:
            row.published_in = within

    def require_own(self, bind: Engine | Connection) -> None:
        """Refuse what leads to another database than the store's engine.

        Raises:
            ConfigurationError: it does.
        """
        if not self._is_own(bind):
            raise ConfigurationError(
                f"this session or connection is of {bind.engine.url!r}, and the outbox is in {self._engine.url!r}: an event is "
                "committed with the rows it tells of, so publish where they are written"
            )

    def _is_own(self, bind: Engine | Connection) -> bool:
        return bind.engine.pool is self._engine.pool or _place(bind.engine) == _place(self._engine)

    def _bind(self, session: Session, mapped: Any) -> Engine | Connection:
        try:
            return session.get_bind(mapped)
        except exc.UnboundExecutionError as error:
            raise ConfigurationError(
                "this session is bound to no engine that its outbox rows could go to: give it bind=engine beside its binds"
            ) from error

    def _listen(self, session: Session) -> "_Heard":
        heard: dict[int, _Heard] = session.info.setdefault(_HEARD, {})
        if id(self) not in heard:
            heard[id(self)] = _Heard()
            event.listen(session, "before_flush", self._before_flush)
            event.listen(session, "before_commit", self._before_commit)
            event.listen(session, "pending_to_transient", self._after_drop)
            event.listen(session, "persistent_to_transient", self._after_drop)  # written in a savepoint that is undone
            event.listen(session, "after_soft_rollback", self._after_rollback)
            event.listen(session, "after_commit", self._after_commit)
            event.listen(session, "after_transaction_end", self._after_end)
        heard[id(self)].is_pending = True
        return heard[id(self)]

    def _heard(self, session: Session) -> "_Heard":
        heard: dict[int, _Heard] = session.info.get(_HEARD, {})
        return heard.get(id(self)) or _Heard()  # the user may have emptied `info`

    def _before_commit(self, session: Session) -> None:
        self._heard(session).bring_back(session)

    def _after_drop(self, session: Session, dropped: object) -> None:
        if isinstance(dropped, OutboxMessage):
            self._heard(session).dropped.append(dropped)

    def _after_rollback(self, session: Session, ended: SessionTransaction) -> None:
        self._heard(session).forget_undone(ended)

    def _after_end(self, session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None:
            self._heard(session).forget_all()

    def _before_flush(self, session: Session, *_: object) -> None:
        self._heard(session).bring_back(session)
        # Only now is it known which connection they go to, and how that was set up.
        for mapped in {type(new) for new in session.new if isinstance(new, OutboxMessage)}:
            bind = self._bind(session, mapped)
            if self._is_own(bind):
                self._require_kept(session.connection({"mapper": mapped}))

    def _after_commit(self, session: Session) -> None:
        heard = self._heard(session)
        if heard.is_pending and not session.in_nested_transaction():
            heard.is_pending = False
            self._committed(by_another=isinstance(session.bind, Connection))


def _place(engine: Engine) -> tuple[str, str | None, int | None, str | None]:
    url = engine.url
    return engine.dialect.name, url.host, url.port, url.database
