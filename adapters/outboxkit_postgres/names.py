"""The names of one app's tables, as they stand in SQL."""

import re
from functools import lru_cache
from typing import NamedTuple

from outboxkit.errors import ConfigurationError

_SCHEMA = re.compile(r"[A-Za-z_][A-Za-z0-9_$]{0,62}")
# Only these, as other braces are SQL's own: those of an empty array, '{}', say.
_NOUN = re.compile(
    r"\{(schema|topic|outbox|outbox_seq_seq|later|period|tick|cursor|stream|mark|known_group|removed|lease|member|handled|floor|inbox)\}"
)


class Names(NamedTuple):
    """A schema and a table prefix, both validated.

    Every name is qualified: a unit of work may set another ``search_path``, and must still find the outbox of its own app.
    """

    schema: str
    prefix: str

    def table(self, noun: str) -> str:
        """Return a table's qualified name."""
        return f'"{self.schema}".{self.prefix}{noun}'

    def sql(self, text: str) -> str:
        """Fill a statement in: ``{outbox}`` becomes the outbox's qualified name, and so does each noun of schema.sql."""
        return _filled(self, text)

    def script(self, text: str) -> str:
        """Fill schema.sql or publish.sql in, where ``{schema}`` is the schema itself."""
        return text.replace("{schema}", f'"{self.schema}"').replace("{prefix}", self.prefix)

    @property
    def channel(self) -> str:
        """The channel on which commits are signalled."""
        return f"{self.prefix}log_{self.schema}"[:63]


@lru_cache(maxsize=256)  # statements are asked for each time they run
def _filled(names: Names, text: str) -> str:
    return _NOUN.sub(lambda found: names.table(found[1]), text)


def checked_schema(schema: str) -> str:
    """Return a schema's name if it is an identifier that nothing cuts short.

    Raises:
        ConfigurationError: it is not 1 to 63 letters, digits, ``_`` and ``$``, starting with a letter or ``_``.
    """
    if _SCHEMA.fullmatch(schema):
        return schema
    raise ConfigurationError(f"schema {schema!r}: use 1 to 63 letters, digits, '_' or '$', starting with a letter or '_'")
