"""Outcomes: what becomes of deliveries in one transaction, as its handlers run.

A failure makes its message wait or die, by the handler's retry policy. While a message waits, later ones of its key are parked.
"""

from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, NoReturn

from outboxkit.errors import AttemptLostError, ConflictError, HandlerMissingError
from outboxkit.handler import Handler
from outboxkit.inbox import Outcome, Retry, settled
from outboxkit.letter import error_text
from outboxkit.message import Delivery, Envelope, Message, Position
from outboxkit.observe import Observer
from outboxkit.retry import RetryPolicy, consists_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_Report = Callable[[], None]

_CONFLICT_SECONDS = 1.0

BEGUN_SECONDS = 2.0
"""The least time after which an attempt that nobody ended is followed by the next one."""


class Work:
    """A delivery whose envelope has been read, and the handler for it.

    Raises:
        EnvelopeError: its extension attributes cannot be read.
    """

    __slots__ = ("_envelope", "_headers", "_message", "delivery", "event", "handler", "key", "obstacle", "policy", "retry")

    def __init__(
        self,
        delivery: Delivery,
        envelope: Envelope,
        event: object,
        handler: Handler,
        policy: RetryPolicy,
        retry: Retry | None,
        obstacle: Exception | None = None,
    ) -> None:
        self._envelope = envelope
        self._headers: Mapping[str, str] = envelope.headers(delivery.envelope) if obstacle is None else {}
        self._message: Message | None = None
        self.delivery = delivery
        self.event = event
        self.handler = handler
        self.policy = policy
        self.retry = retry
        """What it waited as, None when it comes for the first time."""
        self.obstacle = obstacle
        """Why the handler cannot be called; None when it can."""
        self.key = envelope.subject if handler.ordered else None
        """What keeps order, None where nothing does."""

    @property
    def attempt(self) -> int:
        """Which run of the handler this is, from 1."""
        # One that is tried alone has been counted; of others the attempt is known when they fail.
        retry = self.retry
        return 1 if retry is None else retry.attempt if retry.alone else retry.attempt + 1

    @property
    def type(self) -> str:
        """Of its event."""
        return self._envelope.type

    @property
    def message(self) -> Message:
        """What a handler may ask for besides the event; made only for those who do."""
        if self._message is None:
            self._message = Message.of(self.delivery, self._envelope, self.attempt, self._headers)
        return self._message

    @property
    def cause(self) -> str | None:
        """The trace that events published in handling this one go on with."""
        return self._headers.get("traceparent")


class Failure(NamedTuple):
    """What the handler of one message raised."""

    position: Position
    error: Exception


class Outcomes:
    """What becomes of the deliveries of one transaction, if it is committed.

    Args:
        group: whose.
        observer: told of it after that.
        known: what a handler raised in a transaction that was undone for it, and which this one is in place of.
    """

    def __init__(self, group: str, observer: Observer, known: Failure | None = None) -> None:
        self._group = group
        self._observer = observer
        self._blocked = set[str]()
        self._reports: list[_Report] = []
        self.skipped = Counter[str]()
        """By their type, how many nobody here handles."""
        self.begun = False
        """Whether handlers were about to be called."""
        self.tried = 0
        """How many handlers have come to an end, one way or the other."""
        self.deferred = 0
        """For how many there was no time."""
        self.shared_failure: Failure | None = None
        """What a handler raised that shared the transaction: it cannot be undone alone."""
        self._known = known
        self.recorded: list[Outcome] = []
        self.afterwards: list[Work] = []
        """Settled messages whose handler has something to do once that is durable."""

    def blocks(self, work: Work) -> bool:
        """Whether an earlier message of its key waits."""
        return work.key in self._blocked

    def block(self, keys: Collection[str]) -> None:
        """Note that messages of these keys wait."""
        self._blocked.update(keys)

    @property
    def failed(self) -> bool:
        """Whether any handler did."""
        return any(outcome.error is not None for outcome in self.recorded)

    def deferred_from(self) -> Position | None:
        """The first position that was not tried."""
        return min((outcome.delivery.position for outcome in self.recorded if outcome.state == "deferred"), default=None)

    def skip(self, delivery: Delivery, type: str) -> None:
        """Nobody here handles it."""
        self.skipped[type] += 1
        self.recorded.append(Outcome(delivery, "settled"))

    def unreadable(self, delivery: Delivery, error: Exception, retry: Retry | None) -> None:
        """It is no event of ours."""
        attempt = retry.attempt if retry else 1
        self.recorded.append(Outcome(delivery, "dead", attempt, error=error_text(error), waited=retry is not None))
        self._tell_undecodable(delivery, error)

    def prevented(self, work: Work, obstacle: Exception) -> None:
        """Its handler cannot be called: no attempt can mend what does not fit, and who handles it may come yet."""
        if isinstance(obstacle, HandlerMissingError):
            self._wait(work, obstacle)
        else:
            self._tell_undecodable(work.delivery, obstacle)
            self._die(work, obstacle, work.attempt)

    def ended(self, work: Work, error: Exception | None) -> None:
        """Its handler came to an end."""
        self.tried += 1
        if error is None:
            self.recorded.append(settled(work.delivery, work.attempt, waited=work.retry is not None))
            if work.handler.after_commit is not None:
                self.afterwards.append(work)
        elif consists_of(error, (ConflictError,)):  # nobody's failure
            self._fail(work, error, _CONFLICT_SECONDS, counted=False)
        elif work.policy.counts(error):
            self._fail(work, error, work.policy.delay(work.attempt, error), counted=True)
        else:
            self._wait(work, error)

    def fail_together(self, work: Work, error: Exception) -> NoReturn:
        """Note what a handler raised that is not undone alone, and raise it: nothing of the transaction may be kept."""
        self.shared_failure = Failure(work.delivery.position, error)
        if isinstance(error, StopIteration):
            raise RuntimeError("the handler raised StopIteration") from error  # no coroutine may raise that
        raise error

    def known_failure(self, work: Work) -> Exception | None:
        """What its handler raised before, if nothing before it can have been the reason; it need not run again, then."""
        known = self._known
        return known.error if known and known.position == work.delivery.position and not self.failed else None

    def park(self, work: Work) -> None:
        """It is not tried, as an earlier message of its key waits."""
        self._record(work, Outcome(work.delivery, "parked", work.attempt - 1))

    def defer(self, work: Work) -> None:
        """It is not tried, as time is up."""
        self.deferred += 1
        if work.retry is None:
            self._record(work, Outcome(work.delivery, "deferred"))
        elif work.key is not None:  # whose turn it is shows when all of its key have their outcome
            self.park(work)
        else:
            self._record(work, Outcome(work.delivery, "retry", work.attempt - 1))

    def set_aside(self, work: Work) -> None:
        """It is to be tried alone."""
        state: Literal["parked", "retry"] = "parked" if self.blocks(work) else "retry"
        self._record(work, Outcome(work.delivery, state, 0, alone=True))

    def begin(self, work: Work) -> bool:
        """Count an attempt that is about to begin, should nobody come to its end; False when there were enough of those."""
        policy = work.policy
        if work.attempt > policy.attempts:
            self._give_up(work)
            return False
        last = ", its last," if work.attempt == policy.attempts else ""
        error = AttemptLostError(
            f"attempt {work.attempt} of {work.handler.name}{last} never came to an end: the process ended during it, or was "
            "killed: look at its exit code and at the memory it took"
        )
        delay = max(BEGUN_SECONDS, policy.delay(work.attempt, error) or 0.0)
        self._record(work, Outcome(work.delivery, "retry", work.attempt, delay, error_text(error), alone=True))
        return True

    def _give_up(self, work: Work) -> None:
        """Have a message die with the error it waits with: it may have failed, under a policy that allowed more attempts."""
        told = AttemptLostError(
            f"attempt {work.attempt - 1} of {work.handler.name} was its last: the dead letter tells how it ended"
        )
        self._reports.append(partial(self._observer.failed, self._group, work.message, told, None))
        self._die(work, None, work.attempt - 1)

    def give_back(self, work: Work) -> None:
        """An attempt that was begun is none, through no fault of the handler's."""
        self._record(work, Outcome(work.delivery, "retry", work.attempt - 1, alone=True))

    def report(self, topic: str, duplicates: int = 0) -> None:
        """Tell the observer; only after the commit, because until then it may all happen again."""
        counts = Counter("aside" if outcome.alone else outcome.state for outcome in self.recorded)
        told = {
            "settled": counts["settled"] - self.skipped.total(),
            "skipped": self.skipped.total(),
            "retry": counts["retry"],
            "aside": counts["aside"],
            "parked": counts["parked"],
            "dead": counts["dead"] + counts["held"],
            "duplicate": duplicates,
        }
        for outcome, count in told.items():
            if count:
                self._observer.consumed(self._group, topic, outcome, count)
        for report in self._reports:
            report()

    def _fail(self, work: Work, error: Exception, delay: float | None, *, counted: bool) -> None:
        self._reports.append(partial(self._observer.failed, self._group, work.message, error, delay))
        attempt = work.attempt if counted else work.attempt - 1
        if delay is None:
            self._die(work, error, attempt)
        else:
            alone = isinstance(error, AttemptLostError)  # or it would take others with it
            self._record(work, Outcome(work.delivery, "retry", attempt, delay, error_text(error), alone=alone))

    def _wait(self, work: Work, error: Exception) -> None:
        waited = work.retry.waited_seconds if work.retry else 0.0
        self._fail(work, error, work.policy.patience(waited), counted=False)

    def _die(self, work: Work, error: Exception | None, attempt: int) -> None:
        holds = work.handler.on_dead == "hold" and work.key is not None
        state: Literal["dead", "held"] = "held" if holds else "dead"
        self._record(work, Outcome(work.delivery, state, attempt, error="" if error is None else error_text(error)))

    def _tell_undecodable(self, delivery: Delivery, error: Exception) -> None:
        self._reports.append(partial(self._observer.undecodable, self._group, delivery.stream, delivery.position, error))

    def _record(self, work: Work, outcome: Outcome) -> None:
        message = work.message
        self.recorded.append(outcome._replace(id=message.id, type=message.type, key=work.key, waited=work.retry is not None))
        if outcome.state in ("retry", "parked", "held") and work.key is not None:
            self._blocked.add(work.key)
