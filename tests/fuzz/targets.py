"""What is fuzzed: the reading of envelopes, and of a Redis server's replies."""

import re
from collections.abc import Awaitable, Callable, Sequence
from types import ModuleType
from typing import Any, Protocol

import msgspec

from outboxkit import message as message_module
from outboxkit import shown
from outboxkit.broker import Append
from outboxkit.errors import BrokerError, EnvelopeError
from outboxkit.log import Entries
from outboxkit.message import LAST, ORIGIN, TEXT_BYTES, Delivery, Envelope, Message, Position, Stream, digest
from outboxkit_redis import RedisBroker, entries, replies
from tests.fuzz import mutation
from tests.hostile.corpus import ANNOUNCED, GROUPS, PREVS, READABLE, UNREADABLE, envelope

STREAM = Stream("notes", 0, "stranger")
KEY = f"outboxkit:{STREAM}".encode()


class Target(Protocol):
    """Something that reads inputs, and answers each in some way; what it raises is found."""

    @property
    def modules(self) -> Sequence[ModuleType]:
        """Return where is watched what an execution comes by."""
        ...

    @property
    def seeds(self) -> Sequence[Any]:
        """Inputs to begin with."""
        ...

    def mutated(self, rng: Any, given: Any, others: Callable[[], Any]) -> Any:
        """Return an input like this one."""
        ...

    def run(self, given: Any) -> str:
        """Read an input; return what came of it, in general terms: those that answer something new are kept."""
        ...


class Note(msgspec.Struct, frozen=True):
    """An event of a few types of fields."""

    data: Any = None
    number: int = 0
    text: str | None = None
    more: list[dict[str, float]] = []


class Envelopes:
    """Bytes of an envelope, to a message and its event."""

    modules = (message_module, shown)

    def __init__(self) -> None:
        self._decode = msgspec.json.Decoder(Note).decode

    @property
    def seeds(self) -> Sequence[bytes]:
        whole = envelope(time="2024-05-06T07:08:09.5Z", subject="key", traceparent="00-a-b-00", number=1, data={"number": 1})
        return [whole, *(raw for raw in (*READABLE.values(), *UNREADABLE.values()) if len(raw) <= mutation.LONGEST)]

    def mutated(self, rng: Any, given: bytes, others: Callable[[], bytes]) -> bytes:
        return mutation.mutated_bytes(rng, given, others)

    def run(self, given: bytes) -> str:
        try:
            found = Envelope.decode(given)
            message = Message.of(Delivery(STREAM, Position(1, 0), ORIGIN, given), found, 1)
        except EnvelopeError as error:
            if not shown.line(str(error)).isprintable():
                raise AssertionError("it cannot be shown plainly") from error
            return _kind(error.__cause__ or error)
        for text in (message.id, message.key or ""):
            assert "\0" not in text
            assert len(text.encode()) <= TEXT_BYTES
        for name, value in message.headers.items():
            assert (name + value).encode().decode() == name + value
        assert shown.line(message.id).isprintable()
        try:
            self._decode(bytes(found.data))
        except Exception as error:  # as `Handling.decoded` has it: the user's class may raise anything
            return _kind(error)
        return f"read {min(3, len(message.headers))} {message.key is None} {message.time is None}"


def _kind(error: BaseException) -> str:
    """Return what an error says, without what is quoted in it: else every input would lead to something new."""
    text = error.reason if isinstance(error, UnicodeDecodeError) else str(error)
    path = re.search(r"\$\.(specversion|id|source|type|time|subject|data|number|text|more)\b", text)
    return " ".join((type(error).__name__, *re.findall(r"[A-Za-z]+", text)[:3], path[0] if path else ""))


class _Server:
    """Stands for a client whose server answers what it is given, once, and then nothing more."""

    def __init__(self, reply: Any) -> None:
        self._reply = reply
        self._asked = False

    async def send(self, commands: Sequence[Any]) -> list[Any]:
        reply: Any = [] if self._asked else self._reply
        self._asked = True
        return [reply for _ in commands]

    async def read(self, read: Any, keys: Sequence[str], *, block_seconds: float) -> Any:
        (reply,) = await self.send([read])
        return reply or []


_ENTRY = [b"7-0", [b"event", b"{}", b"prev", b"6-0"]]
_FOREIGN = [b"8-1", [b"name", b"caf\xe9", b"n", b"1"]]
_REPLIES: dict[str, Sequence[Any]] = {
    "last": [b"7-0"],
    "append": [b"7-0"],
    "groups": [
        [[b"diary", b"7-0", b"3-0", 17], [b"diary:floor", b"2-0", b"", -1]],
        [[name, b"7-0", b"", 0] for name in GROUPS],
    ],
    "trim": [[3, 0], [3, 1]],
    "streams": [[b"0:stranger", b"7:shop"], list(ANNOUNCED)],
    "pending": [[[KEY, [_ENTRY, _FOREIGN, [b"9-0", None]]]], None],
    "reclaim": [[b"0-0", [_ENTRY, None, _FOREIGN], [b"5-0"]], [b"9-0", [_ENTRY]]],
    "range": [[_ENTRY, _FOREIGN], [[b"9-0", [b"event", b"{}", b"prev", prev]] for prev in PREVS]],
    "read": [[[KEY, [_ENTRY, _FOREIGN]]], None],
}


class Replies:
    """What a server answers to each question of the broker's adapter."""

    modules = (entries, replies)

    def __init__(self) -> None:
        self._broker: Any = RedisBroker("redis://nowhere")

    @property
    def seeds(self) -> Sequence[tuple[str, Any]]:
        return [(question, reply) for question, found in _REPLIES.items() for reply in found]

    def mutated(self, rng: Any, given: tuple[str, Any], others: Callable[[], tuple[str, Any]]) -> tuple[str, Any]:
        question, reply = given
        for _ in range(rng.choice((1, 1, 2, 4))):
            reply = mutation.mutated_tree(rng, reply, lambda: others()[1])
        return question, reply if len(str(reply)) <= 2 * mutation.LONGEST else self.seeds[0][1]

    def run(self, given: tuple[str, Any]) -> str:
        question, reply = given
        self._broker._open_client = _Server(reply)
        try:
            answer: Any = _driven(self._asked(question))
        except BrokerError as error:
            return f"{question} {type(error).__name__} {type(error.__cause__).__name__}"
        return f"{question} {_checked(question, answer)}"

    def _asked(self, question: str) -> Awaitable[Any]:
        broker = self._broker
        questions: dict[str, Callable[[], Awaitable[Any]]] = {
            "last": lambda: broker.last([STREAM]),
            "append": lambda: broker.append([Append(ORIGIN, Entries(STREAM))]),
            "groups": lambda: broker.groups([STREAM]),
            "trim": lambda: broker.trim(STREAM, Position(7, 0)),
            "streams": lambda: broker.streams("notes"),
            "pending": lambda: broker.pending("diary", "reader", STREAM, after=ORIGIN, limit=3),
            "reclaim": lambda: broker.reclaim("diary", "reader", [STREAM], idle_seconds=0.0, limit=3),
            "range": lambda: broker.range(STREAM, after=ORIGIN, upto=None, limit=3),
            "read": lambda: self._read(),
        }
        return questions[question]()

    async def _read(self) -> Any:
        """Its waiting needs an event loop, which this does without: it is a thousand times as fast."""
        broker = self._broker
        found = await broker._client.read(None, [KEY.decode()], block_seconds=0.0)
        return await broker._deliveries(replies.read({KEY: STREAM}, found))


def _driven(question: Any) -> Any:
    try:
        question.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits for something")


def _checked(question: str, answer: Any) -> str:
    """See that an answer is what the port says, whatever the reply was."""
    if question in ("pending", "reclaim", "range", "read"):
        for delivery in answer:
            assert type(delivery.envelope) is bytes
            digest(delivery.envelope)
            assert ORIGIN <= delivery.prev < delivery.position <= LAST or delivery.position == ORIGIN
            assert max(*delivery.prev, *delivery.position) <= LAST.minor
    elif question == "streams":
        assert all(stream.is_possible for stream in answer)
    elif question == "groups":
        for name, standing in answer[STREAM].items():
            assert name.isprintable()
            assert len(name) <= 64
            assert max(standing.settled) <= LAST.minor
    elif question == "trim":
        assert type(answer) is int
    else:
        assert all(type(at) is Position for at in (answer.values() if question == "last" else answer))
    return f"{type(answer).__name__} {'' if isinstance(answer, int) else min(3, len(answer))}"


TARGETS: dict[str, Callable[[], Target]] = {"envelope": Envelopes, "replies": Replies}
