"""Who should read which stream: evenly, by every topic, and with as little moving as that allows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeVar

from hypothesis import given
from hypothesis import strategies as st

from outboxkit.assignment import assign
from outboxkit.message import Stream

TOPICS = ("bills", "orders", "parcels")
STREAMS = [Stream(topic, partition, "shop") for topic in TOPICS for partition in range(7)]
NAMES = ("ada", "bob", "cy", "dee", "eve")

K = TypeVar("K")
V = TypeVar("V")

streams = st.lists(st.sampled_from(STREAMS), unique=True)
members = st.dictionaries(st.sampled_from(NAMES), st.lists(st.sampled_from(TOPICS), unique=True))
owners = st.dictionaries(st.sampled_from(STREAMS), st.sampled_from((*NAMES, "gone")))


def _backwards(known: Mapping[K, V]) -> Mapping[K, V]:
    return {key: known[key] for key in reversed(list(known))}


@given(streams, members, owners)
def test_every_stream_of_a_topic_that_somebody_consumes_is_one_of_theirs(
    streams: Sequence[Stream], members: Mapping[str, Sequence[str]], owners: Mapping[Stream, str]
) -> None:
    shares = assign(streams, members, owners)
    assert set(shares) == {stream for stream in streams if any(stream.topic in topics for topics in members.values())}
    assert all(stream.topic in members[name] for stream, name in shares.items())


@given(streams, members, owners)
def test_of_each_topic_nobody_has_two_more_than_another(
    streams: Sequence[Stream], members: Mapping[str, Sequence[str]], owners: Mapping[Stream, str]
) -> None:
    shares = assign(streams, members, owners)
    for topic in TOPICS:
        counts = [
            sum(name == owner and stream.topic == topic for stream, owner in shares.items())
            for name, topics in members.items()
            if topic in topics
        ]
        assert not counts or max(counts) - min(counts) <= 1


@given(streams, members, owners)
def test_all_members_come_to_the_same_and_stay_with_it(
    streams: Sequence[Stream], members: Mapping[str, Sequence[str]], owners: Mapping[Stream, str]
) -> None:
    shares = assign(streams, members, owners)
    assert assign(streams[::-1], _backwards(members), _backwards(owners)) == shares
    assert assign(streams, members, shares) == shares


@given(streams, members, owners)
def test_no_more_is_moved_than_has_to_be(
    streams: Sequence[Stream], members: Mapping[str, Sequence[str]], owners: Mapping[Stream, str]
) -> None:
    shares = assign(streams, members, owners)
    for topic in TOPICS:
        of_topic = [stream for stream in streams if stream.topic == topic and stream in shares]
        had = Counter(owners[stream] for stream in of_topic if stream in owners)
        able = [name for name, topics in members.items() if topic in topics]
        kept = sum(owners.get(stream) == name for stream, name in shares.items() if stream.topic == topic)
        each, more = divmod(len(of_topic), len(able)) if able else (0, 0)
        larger = sum(had[name] > each for name in able)
        assert kept == sum(min(had[name], each) for name in able) + min(larger, more)


def test_one_partition_topics_are_shared_out_too() -> None:
    topics = [f"topic-{number}" for number in range(10)]
    shares = assign([Stream(topic, 0, "shop") for topic in topics], {"ada": topics, "bob": topics}, {})
    assert Counter(shares.values()) == {"ada": 5, "bob": 5}
