"""What may be done about dead letters: look, run again, give up, carry away and bring back."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

from outboxkit.errors import ConfigurationError
from outboxkit.letter import EVERY_LETTER, Choice, DeadLetter, Letters, LetterStore, check_refs

_PAGE = 200


def require_choice(which: Letters, *, everything: bool) -> None:
    """Refuse to change all letters by forgetting to say which.

    Raises:
        ConfigurationError: nothing was chosen.
    """
    if which.are_all and not everything:
        raise ConfigurationError("which dead letters? Name some, or --all (everything=True)")


class DeadLetters:
    """The dead letters of one app's database, while the app is open.

    Everywhere `which` chooses: `Letters`, or a ref or a message's id, or a list of those. Others may work on them at the same
    time: each is retried, or discarded, once.
    """

    def __init__(self, store: LetterStore) -> None:
        self._store = store

    async def find(self, which: Choice = EVERY_LETTER, *, limit: int = 100) -> Sequence[DeadLetter]:
        """Return letters without their envelopes, `limit` at most."""
        return await self._letters(Letters.of(which), None, limit, envelopes=False)

    async def show(self, name: str) -> Sequence[DeadLetter]:
        """Return the letter of a ref, or those of a message's id (one for each group it failed in), with their envelopes."""
        return await self._letters(Letters(names=[name]), None, _PAGE, envelopes=True)

    async def retry(self, which: Choice, *, everything: bool = False) -> int:
        """Run letters again, from their first attempt; with the message's id and position, so that the effect happens once.

        Later messages of the same key wait until it is settled or dead.

        Args:
            which: which ones.
            everything: that all are meant when `which` names nothing.

        Returns: how many wait now for their attempt.

        Raises:
            ConfigurationError: nothing was chosen, or `which` is nothing that chooses.
        """
        return await self._for_all(Letters.of(which), self._store.revive, everything=everything)

    async def discard(self, which: Choice, *, everything: bool = False) -> int:
        """Give letters up, without their effect; what waited behind them runs.

        Args:
            which: which ones.
            everything: that all are meant when `which` names nothing.

        Returns: how many are gone.

        Raises:
            ConfigurationError: nothing was chosen, or `which` is nothing that chooses.
        """
        return await self._for_all(Letters.of(which), self._store.discard, everything=everything)

    async def export(self, which: Choice = EVERY_LETTER) -> AsyncIterator[DeadLetter]:
        """Yield letters with their envelopes, however many; they stay. `DeadLetter.to_json` is a line of JSON of each."""
        async for page in self._pages(Letters.of(which), envelopes=True):
            for letter in page:
                yield letter

    async def refs(self, which: Choice = EVERY_LETTER) -> Sequence[str]:
        """Return the refs of letters, however many."""
        return [letter.ref async for page in self._pages(Letters.of(which), envelopes=False) for letter in page]

    async def take_out(self, refs: Sequence[str]) -> int:
        """Discard letters that somebody keeps elsewhere; `bring_back` undoes it.

        Returns: how many.

        Raises:
            ConfigurationError: one of them is no letter's ref.
        """
        check_refs(refs)
        return await self._store.discard(refs, exported=True)

    async def bring_back(self, letters: Iterable[DeadLetter]) -> Sequence[bool]:
        """Make letters that were taken out of this database dead letters again.

        Returns:
            For each whether it did. Others are dead letters here already, or were settled or discarded for good, and would
            have their effect a second time.

        Raises:
            ConfigurationError: one has no envelope, or a ref that no database has given out.
        """
        wanted = list(letters)
        check_refs([letter.ref for letter in wanted])
        for letter in wanted:
            if letter.envelope is None:
                raise ConfigurationError(f"letter {letter.ref} has no envelope: bring back what `export` gave")
        done: list[bool] = []
        for first in range(0, len(wanted), _PAGE):
            done += await self._store.restore(wanted[first : first + _PAGE])
        return done

    async def _for_all(self, which: Letters, change: Callable[[Sequence[str]], Awaitable[int]], *, everything: bool) -> int:
        require_choice(which, everything=everything)
        changed = 0
        async for page in self._pages(which, envelopes=False):
            changed += await change([letter.ref for letter in page])
        return changed

    async def _pages(self, which: Letters, *, envelopes: bool) -> AsyncIterator[Sequence[DeadLetter]]:
        # On from the last one, whatever becomes of those before: a letter that dies again at once is not met again.
        after: str | None = None
        while page := await self._letters(which, after, _PAGE, envelopes=envelopes):
            yield page
            after = page[-1].ref

    async def _letters(self, which: Letters, after: str | None, limit: int, *, envelopes: bool) -> Sequence[DeadLetter]:
        asked = which.storable()
        return await self._store.letters(asked, after, limit, envelopes=envelopes) if asked else []
