"""The names of one app's tables, as they stand in SQL."""

import re
from functools import lru_cache

_NOUN = re.compile(r"\{(\w+)\}")


@lru_cache(maxsize=256)  # statements are asked for each time they run
def filled(statement: str, prefix: str) -> str:
    """Fill a statement in: ``{inbox}`` becomes the inbox's name, and so does each noun of schema.sql."""
    return _NOUN.sub(lambda found: prefix + found[1], statement)
