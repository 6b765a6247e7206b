"""Pages of a log, in columns: whoever goes through them sees entries."""

import pytest

from outboxkit.log import ByStream, Entries, LogEntry, LogPage
from outboxkit.message import ORIGIN, Position, Stream

FIRST, SECOND = Stream("topic", 0, "writer"), Stream("topic", 1, "writer")
LOG = [LogEntry((FIRST, SECOND)[number % 3 == 0], Position(number // 2, number % 2), b"%d" % number) for number in range(20)]


def page_of(log: list[LogEntry]) -> LogPage:
    """Return entries as a store would."""
    streams = ByStream("writer")
    for (topic, partition, _), position, envelope in log:
        streams[topic, partition].add(position, envelope)
    return streams.page()


def test_a_page_is_gone_through_in_the_order_of_the_log() -> None:
    page = page_of(LOG)
    assert list(page) == LOG
    assert (page[0], page[-1], page[3:5]) == (LOG[0], LOG[-1], LOG[3:5])
    assert (len(page), page.end) == (len(LOG), LOG[-1].position)


def test_a_page_has_the_entries_of_each_stream() -> None:
    assert {stream: list(entries) for stream, entries in page_of(LOG).streams.items()} == {
        stream: [entry for entry in LOG if entry.stream == stream] for stream in (FIRST, SECOND)
    }


def test_a_page_of_nothing_is_false() -> None:
    assert not LogPage()
    assert not ByStream("writer").page()


@pytest.mark.parametrize("position", [ORIGIN, *(entry.position for entry in LOG), Position(1, 7), Position(99, 0)])
def test_entries_after_a_position_are_those_above_it(position: Position) -> None:
    entries = page_of(LOG).streams[FIRST]
    before = list(entries)
    assert list(entries.after(position)) == [entry for entry in before if entry.position > position]
    assert list(entries) == before


def test_entries_say_what_they_are() -> None:
    entries = Entries(FIRST, [(Position(1, 0), b"secret")])
    assert (entries[0], entries[-1:]) == (LogEntry(FIRST, Position(1, 0), b"secret"), [entries[0]])
    assert repr(LogPage([entries])) == "LogPage([Entries(topic:0:writer, 1 up to 1-0)])"
    assert repr(Entries(SECOND)) == "Entries(topic:1:writer, 0 up to None)"
