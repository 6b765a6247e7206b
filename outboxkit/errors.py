"""Every error this library raises, one tree.

    OutboxkitError
    ├── ConfigurationError          found before anything runs: the program has to be changed
    │   ├── UnknownSchemeError      a URL whose scheme no adapter claims
    │   ├── MissingExtraError       an adapter whose driver is not installed
    │   ├── EventDeclarationError   an @event that cannot work
    │   └── HandlerSignatureError   a function whose arguments cannot be supplied
    ├── PublishError                this event was not published; its transaction decides what that means
    │   ├── UndeclaredEventError    not an @event, or not named by @publishes here
    │   ├── NoUnitOfWorkError       outside a unit of work, or after its end
    │   ├── DueTimeError            a delay or a time for it that cannot be kept
    │   └── PayloadError            what could not be stored and read everywhere
    │       └── PayloadTooLargeError
    ├── EnvelopeError               bytes that are no event of ours
    ├── AttemptError                an attempt of a handler that it did not end itself; seen in dead letters, and never raised
    │   ├── TimeLimitError          it took longer than its retry policy allows
    │   ├── AttemptLostError        the process ended during it, or the database session
    │   └── HandlerMissingError     there was no handler for it
    ├── StoreError                  the database
    │   ├── StoreUnavailableError   away or busy: trying again later may help
    │   │   ├── SessionLostError        a session ended in the middle of its transaction: nothing of it was committed
    │   │   └── CommitUnknownError      it went away during a commit, and there is nothing to tell the outcome by
    │   ├── ConflictError           undone in favour of another transaction: the same work may succeed at once
    │   ├── LeaseLostError          another process has claimed what this one had
    │   ├── AccessDeniedError       a wrong password, or a role that may not do this
    │   ├── SchemaError             tables are missing, newer, changed, or another app's
    │   ├── NotADatabaseError       there is no such database, or the file is something else
    │   └── TransactionError        the open transaction was used in a way its unit of work forbids
    │       └── TransactionLostError    it was ended behind our back: nothing of it is kept
    └── BrokerError                 the broker
        ├── BrokerUnavailableError  away, or refusing for now: trying again later may help
        ├── GroupMissingError       the consumer group is gone and has to be made again at its floor
        ├── GroupActiveError        a group that was to be dismissed is alive
        └── StreamConflictError     something else stands where our stream should be

Messages name the thing, the reason and the next step.
"""


class OutboxkitError(Exception):
    """The root of every error this library raises."""


class ConfigurationError(OutboxkitError):
    """The program or its configuration has to be changed before it can run."""


class UnknownSchemeError(ConfigurationError):
    """A store or broker URL has a scheme that no installed adapter claims."""


class MissingExtraError(ConfigurationError):
    """The adapter is known but the packages it needs are not installed."""


class EventDeclarationError(ConfigurationError):
    """An ``@event`` declaration cannot work: no topic, a bad name, a missing key, two events of one name."""


class HandlerSignatureError(ConfigurationError):
    """A decorated function has a parameter that cannot be supplied, or does not take its event."""


class PublishError(OutboxkitError):
    """An event was refused at publish, before anything of it was written."""


class UndeclaredEventError(PublishError):
    """The object is no ``@event``, or the function publishing it does not name it in ``@publishes``."""


class NoUnitOfWorkError(PublishError):
    """Publishing, or using the transaction, outside an open unit of work."""


class DueTimeError(PublishError):
    """An event was to be published after a delay, or at a time, that makes no sense or is too far away."""


class PayloadError(PublishError):
    """The payload holds something that cannot be stored and read back everywhere (NaN, NUL, lone surrogates, depth)."""


class PayloadTooLargeError(PayloadError):
    """The envelope is larger than the configured limit."""


class EnvelopeError(OutboxkitError):
    """Bytes from a stream could not be read as an event."""


class AttemptError(OutboxkitError):
    """An attempt came to an end that its handler did not make."""


class TimeLimitError(AttemptError):
    """A handler took longer than its retry policy's ``limit_seconds`` and was cancelled."""


class AttemptLostError(AttemptError):
    """The process, or the database session of this one message, ended or was killed while a handler ran."""


class HandlerMissingError(AttemptError):
    """A message waits that a function handled once, and no function of its group does in this process."""


class StoreError(OutboxkitError):
    """Something about the database."""


class StoreUnavailableError(StoreError):
    """The database is away or busy; the same call may succeed later."""


class SessionLostError(StoreUnavailableError):
    """A database session ended in the middle of its transaction, of which nothing was committed; the next one may succeed."""


class CommitUnknownError(StoreUnavailableError):
    """The database went away during a commit, and whether that happened cannot be found out: look for what was written."""


class ConflictError(StoreError):
    """The database undid the transaction in favour of another one; nothing of it is kept, and it may be run again at once."""


class LeaseLostError(StoreError):
    """Another process has claimed the stream meanwhile; nothing of it may be settled here."""


class AccessDeniedError(StoreError):
    """The database refuses this role: its password is wrong, or it lacks a right."""


class SchemaError(StoreError):
    """The tables are missing, of a newer version, changed by hand, or belong to another app."""


class NotADatabaseError(StoreError):
    """There is no such database, or the file named is not one."""


class TransactionError(StoreError):
    """The transaction of a unit of work was used in a way that would break its promise."""


class TransactionLostError(TransactionError):
    """The transaction of a unit of work was ended by something in it; none of its events are written."""


class BrokerError(OutboxkitError):
    """Something about the broker."""


class BrokerUnavailableError(BrokerError):
    """The broker is away or refuses for now; the same call may succeed later."""


class GroupMissingError(BrokerError):
    """A consumer group does not exist (any more); subscribe again at the floor."""


class GroupActiveError(BrokerError):
    """A group that was to be dismissed shows signs of life: stop its consumers first."""


class StreamConflictError(BrokerError):
    """Something that is not a stream of ours stands under the stream's name."""
