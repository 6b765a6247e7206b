"""A clerk: what a person does about dead letters, and to see where everything stands."""

from collections.abc import Sequence
from pathlib import Path

from outboxkit.letter import DeadLetter
from outboxkit.rebase import divergences
from tests.crash.checking import Record, number_of
from tests.crash.services import Mail, Shop, Watch


class Clerk:
    """Looks after the dead letters of the mail service.

    Args:
        shop: the other service.
        mail: whose letters they are.
        record: where it is written down which letter is given up.
        watch: told of what must not be found.
        file: where letters are kept that are taken out of the database, before they are.
    """

    def __init__(self, shop: Shop, mail: Mail, record: Record, watch: Watch, file: Path) -> None:
        self._shop, self._mail = shop, mail
        self._letters = mail.app.dead_letters
        self._record = record
        self._watch = watch
        self._file = file

    async def look(self) -> None:
        """See where everything stands, which is nowhere near a stop."""
        for app in (self._shop.app, self._mail.app):
            status = await app.status()
            self._watch.told += [f"status says that {stream.name} is stopped" for stream in status.streams if stream.is_halted]
        app = self._shop.app
        found = await divergences(app.store, app.broker, app.name, ["orders"])
        self._watch.told += [f"rebase would move rows: {item}" for item in found]

    async def take_out_and_bring_back(self) -> None:
        """Have all letters leave the database for a file, and come back from there."""
        letters = [letter async for letter in self._letters.export()]
        self._file.write_text("".join(f"{letter.to_json()}\n" for letter in letters))
        await self._letters.take_out([letter.ref for letter in letters])
        await self.bring_back()

    async def bring_back(self) -> None:
        """Have what is in the file come back, if it is not there."""
        if self._file.exists():
            await self._letters.bring_back(list(map(DeadLetter.from_json, self._file.read_text().splitlines())))

    async def give_one_up(self) -> None:
        """Discard the first letter that is found."""
        for ref in [letter.ref for letter in await self._letters.find()][:1]:
            numbers = _numbers(await self._letters.show(ref))
            for number in numbers:
                self._record.note("discarding", number)
            await self._letters.discard(ref)
            for number in numbers:
                self._record.note("discarded", number)


def _numbers(letters: Sequence[DeadLetter]) -> Sequence[int]:
    return [number_of(letter.envelope) for letter in letters if letter.envelope]
