"""The names users may rely on: few, frozen, and each described."""

import inspect

import pytest

import outboxkit
from outboxkit import errors

NAMES = [
    "App",
    "Backoff",
    "BrokerError",
    "ConfigurationError",
    "ConsumerSettings",
    "Letters",
    "Limits",
    "Message",
    "Observer",
    "OutboxkitError",
    "Position",
    "PublishError",
    "RelaySettings",
    "RetentionSettings",
    "RetryPolicy",
    "Router",
    "Settings",
    "StoreError",
    "UnitOfWork",
    "event",
]


def test_the_public_names_are_these_and_at_most_twenty() -> None:
    assert outboxkit.__all__ == NAMES
    assert len(NAMES) <= 20


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_described(name: str) -> None:
    described = getattr(outboxkit, name)
    assert inspect.getdoc(described)
    assert described.__doc__ is not None
    for method, member in inspect.getmembers(described, inspect.isfunction):
        if not method.startswith("_") and member.__module__.startswith("outboxkit"):
            assert member.__doc__, f"{name}.{method} has no docstring"


def test_every_error_stands_in_the_tree_with_its_parent() -> None:
    """The picture in the module's docstring is the tree as it is."""
    tree = errors.__doc__ or ""
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass)]
    drawn = [line for line in tree.splitlines() if any(word.endswith("Error") for word in line.replace("─", " ").split())]
    parents: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in drawn:
        name = next(word for word in line.replace("─", " ").split() if word.endswith("Error"))
        indent = line.index(name)
        above = [(at, parent) for at, parent in above if at < indent]
        parents[name] = above[-1][1] if above else "Exception"
        above.append((indent, name))
    assert parents == {cls.__name__: cls.__base__.__name__ for cls in classes if cls.__base__ is not None}
    assert all(cls.__doc__ for cls in classes)


def test_the_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert outboxkit.__version__ == version("outboxkit")
