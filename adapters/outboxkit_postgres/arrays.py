"""Arrays as parameters: what a connection of asyncpg's would ask the server about each kind, told to it at once.

It asks when a statement first has one, with a query that takes the server longer to plan than most others to run: a new
connection costs three to four times as much with five kinds. All are built into Postgres, and their numbers never change
(https://github.com/postgres/postgres/blob/master/src/include/catalog/pg_type.dat).
"""

import contextlib
from typing import Any

_ARRAYS = {
    # of: the array's number, its name, its elements' number
    "boolean": (1000, "_bool", 16),
    "bytea": (1001, "_bytea", 17),
    "integer": (1007, "_int4", 23),
    "text": (1009, "_text", 25),
    "bigint": (1016, "_int8", 20),
    "double precision": (1022, "_float8", 701),
    "uuid": (2951, "_uuid", 2950),
}

_NOT_SO = dict.fromkeys(("basetype", "range_subtype", "attrtypoids", "attrnames", "basetype_name", "range_subtype_name"))
"""What is said of domains, ranges and composite types."""

_TYPES = [
    {
        "oid": oid,
        "ns": "pg_catalog",
        "name": name,
        "kind": "b",
        "elemtype": element,
        "elemdelim": ",",
        "elemtype_name": element_name,
    }
    | _NOT_SO
    for element_name, (oid, name, element) in _ARRAYS.items()
]


async def know_arrays(raw: Any) -> None:
    """Tell a new connection what arrays are."""
    # asyncpg promises neither the method nor what it takes. Without it, it asks.
    with contextlib.suppress(AttributeError, LookupError, TypeError):
        raw.get_settings().register_data_types(_TYPES)
