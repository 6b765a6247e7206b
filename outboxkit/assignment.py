"""Assignment: which member of a group should read which stream. Pure: every member comes to the same from the same roster."""

from collections.abc import Collection, Mapping

from outboxkit.message import Stream


def assign(
    streams: Collection[Stream], members: Mapping[str, Collection[str]], owners: Mapping[Stream, str]
) -> Mapping[Stream, str]:
    """Share streams out evenly, topic by topic, and move as few as that allows.

    Args:
        streams: what is to be shared out.
        members: who takes part, with the topics each consumes.
        owners: who reads a stream now; of those that are no members it is taken.

    Returns:
        Who should read each stream; those of a topic that nobody consumes are left out.
    """
    shares: dict[Stream, str] = {}
    loads = dict.fromkeys(sorted(members), 0)
    for topic in sorted({stream.topic for stream in streams}):
        able = [name for name in loads if topic in members[name]]
        if able:
            found = _share_topic(sorted(stream for stream in streams if stream.topic == topic), able, owners, loads)
            shares |= found
            for name in found.values():
                loads[name] += 1
    return shares


def _share_topic(
    streams: Collection[Stream], members: Collection[str], owners: Mapping[Stream, str], loads: Mapping[str, int]
) -> Mapping[Stream, str]:
    had = {name: [stream for stream in streams if owners.get(stream) == name] for name in members}
    each, more = divmod(len(streams), len(members))
    # Who may have one more than the others: who has it already, and then who has least of other topics.
    larger = sorted(members, key=lambda name: (-min(len(had[name]), each + 1), loads[name], name))[:more]
    room = {name: each + (name in larger) for name in members}
    shares = {stream: name for name in members for stream in had[name][: room[name]]}
    for name in shares.values():
        room[name] -= 1
    places = (name for name in members for _ in range(room[name]))
    return shares | dict(zip((stream for stream in streams if stream not in shares), places, strict=True))
