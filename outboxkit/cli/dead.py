"""``dead``: a look at dead letters, and what to do about them."""

import asyncio
import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

import click
import msgspec

from outboxkit import shown
from outboxkit.app import App
from outboxkit.cli.failures import Commands, Failure, Misuse
from outboxkit.cli.loading import AppCommand, with_app
from outboxkit.dead_letters import require_choice
from outboxkit.errors import EnvelopeError
from outboxkit.letter import DeadLetter, Letters
from outboxkit.message import Delivery, Envelope, Message

_SUMMARY_CHARACTERS = 60
_KEY_CHARACTERS = 100
_VALUE_CHARACTERS = 5000
_PAGE = 200


@click.group(cls=Commands)
def dead() -> None:
    """Dead letters: messages that failed for good, to be retried or discarded."""


def _chosen(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that choose letters to a command, which is given ``which``."""

    @click.option("--group", help="Those of a consumer group.")
    @click.option("--type", help="Those of an event type.")
    @click.option("--error", help="Those with this in their error, traceback included.")
    @click.option(
        "--older", "older_seconds", type=click.FloatRange(min=0), help="Those that died so many seconds ago, or before."
    )
    @click.option("--younger", "younger_seconds", type=click.FloatRange(min=0), help="Those that died within so many seconds.")
    @functools.wraps(command)
    def choosing(app: App, *, names: tuple[str, ...] = (), **options: Any) -> None:
        by = {name: options.pop(name) for name in ("group", "type", "error", "older_seconds", "younger_seconds")}
        command(app, which=Letters(names=names or None, **by), **options)

    return choosing


_names = click.argument("names", nargs=-1, metavar="[REF | ID]...")
_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_all = click.option("--all", "everything", is_flag=True, help="All that there are.")


@dead.command("list", cls=AppCommand)
@with_app
@_chosen
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="How many at most.")
@_as_json
def list_letters(app: App, *, which: Letters, limit: int, as_json: bool) -> None:
    """List dead letters.

    Where there are more than --limit, that is said beside the list, and is "more": true in JSON.
    """

    async def find() -> Sequence[DeadLetter]:
        async with app.running(relay=False, consume=False):
            return await app.dead_letters.find(which, limit=limit + 1)  # one more tells whether the list is cut

    found = asyncio.run(find())
    letters, are_more = found[:limit], len(found) > limit
    if as_json:
        click.echo(json.dumps({"app": app.name, "dead": [_fields(letter) for letter in letters], "more": are_more}))
    else:
        click.echo(_table(letters) if letters else f"app {app.name!r} has no dead letters that fit")
        if are_more:
            click.echo("and more: --limit N shows more, `outboxkit dead export` all", err=True)


@dead.command(cls=AppCommand)
@with_app
@click.argument("name", metavar="REF | ID")
@click.option("--payload", is_flag=True, help="Show the event too.")
@_as_json
def show(app: App, *, name: str, payload: bool, as_json: bool) -> None:
    """Show one dead letter: its headers, its attempts, and its error with the traceback."""

    async def find() -> Sequence[DeadLetter]:
        async with app.running(relay=False, consume=False):
            return await app.dead_letters.show(name)

    letters = asyncio.run(find())
    if not letters:
        raise Failure(f"no dead letter is called {shown.line(name)}: `outboxkit dead list` shows those that there are")
    described = [{**_fields(letter), "error": letter.error, **_content(letter, payload=payload)} for letter in letters]
    if as_json:
        click.echo(json.dumps({"app": app.name, "dead": described}))
    else:
        click.echo("\n\n".join(map(_page, described)))


@dead.command(cls=AppCommand)
@with_app
@_names
@_chosen
@_all
@_as_json
def retry(app: App, *, which: Letters, everything: bool, as_json: bool) -> None:
    """Run dead letters again, from their first attempt; their effect happens once all the same."""
    require_choice(which, everything=everything)  # before the database is looked for

    async def revive() -> int:
        async with app.running(relay=False, consume=False):
            return await app.dead_letters.retry(which, everything=everything)

    _tell("retried", _some(which, asyncio.run(revive())), as_json=as_json)


@dead.command(cls=AppCommand)
@with_app
@_names
@_chosen
@_all
@click.option("--yes", is_flag=True, help="Do not ask.")
@_as_json
def discard(app: App, *, which: Letters, everything: bool, yes: bool, as_json: bool) -> None:
    """Give dead letters up, without their effect."""
    require_choice(which, everything=everything)
    _tell("discarded", _some(which, asyncio.run(_give_up(app, which, yes=yes, as_json=as_json))), as_json=as_json)


async def _give_up(app: App, which: Letters, *, yes: bool, as_json: bool) -> int:
    async with app.running(relay=False, consume=False):
        refs = await app.dead_letters.refs(which)
        if refs and not yes:
            question = f"Give up {_letters(len(refs))} of {app.name} for good? (`outboxkit dead export` keeps a copy)"
            click.confirm(question, abort=True, err=as_json)
        # Those that were asked about: others may have died meanwhile, and one's id, which others gave it, may be another's ref.
        return sum([await app.store.discard(page) for page in _pages(refs)])


@dead.command(cls=AppCommand)
@with_app
@_chosen
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A new file; stdout if not given.")
@click.option("--remove", is_flag=True, help="Take them out of the database: `import` brings them back. Needs --output.")
def export(app: App, *, which: Letters, output: Path | None, remove: bool) -> None:
    """Write dead letters as lines of JSON, with their events."""
    if remove and output is None:
        raise Misuse("--remove needs --output: what is written to a pipe may be lost")
    try:
        count = asyncio.run(_export(app, which, output, remove=remove))
    except FileExistsError as error:
        raise Misuse(f"{output} exists already: name a new file") from error
    except OSError as error:
        if output is None:
            raise
        raise Failure(f"{output}: {error.strerror}: nothing was removed") from error
    click.echo(f"{_letters(count)} written{', and taken out of the database' if remove else ''}", err=True)


async def _export(app: App, which: Letters, output: Path | None, *, remove: bool) -> int:
    with contextlib.ExitStack() as opened:
        # Bytes: JSON is UTF-8, whatever the terminal's encoding.
        file: BinaryIO = sys.stdout.buffer if output is None else opened.enter_context(output.open("xb"))
        refs: list[str] = []
        async with app.running(relay=False, consume=False):
            async for letter in app.dead_letters.export(which):
                file.write(f"{letter.to_json()}\n".encode())
                refs.append(letter.ref)
            file.flush()
            if remove:
                os.fsync(file.fileno())  # before they are gone here
                for page in _pages(refs):
                    await app.dead_letters.take_out(page)
    return len(refs)


@dead.command("import", cls=AppCommand)
@with_app
@click.argument("file", type=click.File("rb"))
def import_letters(app: App, *, file: BinaryIO) -> None:
    """Bring back dead letters that ``export --remove`` took out of this database; FILE may be - for stdin."""
    letters = list(_read(file))

    async def bring_back() -> Sequence[bool]:
        async with app.running(relay=False, consume=False):
            return await app.dead_letters.bring_back(letters)

    done = asyncio.run(bring_back())
    click.echo(f"{_letters(sum(done))} brought back")
    if not all(done):
        refs = [letter.ref for letter, back in zip(letters, done, strict=True) if not back]
        raise Failure(
            f"{_letters(len(refs))} left alone ({', '.join(refs[:5])}{', ...' if len(refs) > 5 else ''}): already a dead "
            "letter here, or settled or discarded since, or of another database"
        )


def _read(file: BinaryIO) -> Iterable[DeadLetter]:
    for number, line in enumerate(file, 1):  # of bytes: a file of text is decoded ahead, and could not say which line is none
        try:
            yield DeadLetter.from_json(line.decode())
        except UnicodeDecodeError as error:
            wrong = "not UTF-8 text, as `outboxkit dead export` writes it"
            raise Misuse(f"{file.name}, line {number}: {wrong}: nothing was brought back") from error
        except EnvelopeError as error:
            raise Misuse(f"{file.name}, line {number}: {error}: nothing was brought back") from error


def _pages(refs: Sequence[str]) -> Iterable[Sequence[str]]:
    return (refs[first : first + _PAGE] for first in range(0, len(refs), _PAGE))


def _some(which: Letters, count: int) -> int:
    if not count and not which.are_all:
        raise Failure("no dead letter fits that: `outboxkit dead list` shows those that there are")
    return count


def _tell(what: str, count: int, *, as_json: bool) -> None:
    click.echo(json.dumps({what: count}) if as_json else f"{what} {_letters(count)}")


def _letters(count: int) -> str:
    return f"{count} dead letter{'' if count == 1 else 's'}"


def _fields(letter: DeadLetter) -> dict[str, object]:
    topic, partition, source = letter.stream
    return {
        "ref": letter.ref,
        "group": letter.group,
        "topic": topic,
        "partition": partition,
        "source": source,
        "position": str(letter.position),
        "id": letter.id,
        "type": letter.type,
        "key": letter.key,
        "attempts": letter.attempts,
        "failed_at": letter.failed_at.isoformat(),
        "died_at": letter.died_at.isoformat(),
        "holds_its_key": letter.holds,
        "summary": letter.summary,
    }


def _content(letter: DeadLetter, *, payload: bool) -> dict[str, object]:
    """What the envelope holds besides; of one that cannot be read, its bytes as text."""
    raw = letter.envelope or b""
    try:
        envelope = Envelope.decode(raw)
        message = Message.of(Delivery(letter.stream, letter.position, letter.position, raw), envelope, letter.attempts)
    except EnvelopeError:
        return {"headers": None, **({"envelope": raw.decode("utf-8", "backslashreplace")} if payload else {})}
    time = None if message.time is None else message.time.isoformat()
    event = {"payload": _event(bytes(envelope.data))} if payload else {}
    return {"headers": {"time": time, **message.headers}, **event}


def _event(data: bytes) -> object:
    """Return what an event holds; its text where that is too much for Python: 1e400, thousands of digits, of levels."""
    try:
        event = msgspec.json.decode(data)
        json.dumps(event, indent=2)
    except (ValueError, RecursionError):
        return data.decode("utf-8", "backslashreplace")
    return event


def _table(letters: Sequence[DeadLetter]) -> str:
    now = datetime.now(UTC)
    rows = [("REF", "TYPE", "KEY", "GROUP", "ATTEMPTS", "DIED", "ERROR")]
    for letter in letters:
        died = _ago((now - letter.died_at).total_seconds())
        summary = shown.line(letter.summary, _SUMMARY_CHARACTERS - 3)
        key = "-" if letter.key is None else shown.line(letter.key, _KEY_CHARACTERS)
        rows.append((letter.ref, letter.type or "?", key, letter.group, str(letter.attempts), died, summary))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(0.0, seconds):.0f} s ago"


def _page(described: Mapping[str, object]) -> str:
    long = ("error", "payload", "envelope", "headers", "summary")
    page = [_named(name, "-" if value is None else value) for name, value in described.items() if name not in long]
    headers = cast("Mapping[str, object]", described["headers"] or {})
    page += [_named(name, value) for name, value in headers.items()]
    page += ["", shown.lines(str(described["error"]).rstrip())]
    for name in ("payload", "envelope"):
        if name in described:
            value = described[name]
            page += ["", shown.lines(value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False))]
    return "\n".join(page)


def _named(name: str, value: object) -> str:
    return f"{shown.line(name):14} {shown.line(str(value), _VALUE_CHARACTERS)}"
