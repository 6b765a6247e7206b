"""What may be decorated, what is refused at decoration, and what a decorated function is called with."""

from __future__ import annotations

import functools
import inspect
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator  # noqa: TC003 - annotations are read at run time
from typing import TYPE_CHECKING, Annotated, Any, Optional, ParamSpec, TypeVar

import msgspec
import pytest

from outboxkit import App, ConfigurationError, Message, RetryPolicy, Router, UnitOfWork, event  # noqa: TC001 - as above
from outboxkit.errors import (
    EventDeclarationError,
    HandlerSignatureError,
    NoUnitOfWorkError,
    UndeclaredEventError,
)
from outboxkit.message import Envelope
from outboxkit.testing import MemoryBroker, drain
from outboxkit_sqlite import SQLiteStore
from tests.waiting import until

if TYPE_CHECKING:
    from decimal import Decimal
    from pathlib import Path


P = ParamSpec("P")
R = TypeVar("R")


@event("sold", topic="sales", key="number")
class Sold(msgspec.Struct, frozen=True):
    number: int


@event("paid", topic="sales", key="number")
class Paid(msgspec.Struct, frozen=True):
    number: int


class NoEvent(msgspec.Struct):
    number: int


@pytest.fixture
async def app(tmp_path: Path) -> App:
    """An app with its tables, not open: a task group belongs to one task, and pytest-asyncio's fixtures have another."""
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db", broker=MemoryBroker())
    await app.migrate()
    return app


def published(app: App) -> list[tuple[str, int]]:
    """The events in the outbox, by type and number."""
    assert isinstance(app.store, SQLiteStore)
    connection = sqlite3.connect(app.store.path)
    rows = connection.execute("SELECT type, envelope FROM outboxkit_outbox ORDER BY position").fetchall()
    connection.close()
    return [(type, msgspec.json.decode(bytes(Envelope.decode(raw).data))["number"]) for type, raw in rows]


def arguments_of(function: Callable[..., Any]) -> dict[str, str]:
    router = Router()
    router.consumes(Sold)(function)
    return dict(router.handlers()[0].arguments)


# consuming: what handlers may ask for


def test_a_handler_gets_what_its_annotations_ask_for_in_any_order() -> None:
    async def one(sold: Sold) -> None: ...
    async def swapped(uow: UnitOfWork, sold: Sold) -> None: ...
    async def everything(about: Message, uow: UnitOfWork, sold: Sold) -> None: ...
    async def keyword_only(*, sold: Sold, message: Message) -> None: ...
    def plain(sold: Sold, uow: UnitOfWork) -> None: ...
    async def many(sold: list[Sold], abouts: list[Message], uow: UnitOfWork) -> None: ...
    async def annotated(sold: Annotated[Sold, "a sale"]) -> None: ...
    async def also_by_hand(sold: Sold, uow: UnitOfWork | None = None, about: Optional[Message] = None) -> None: ...  # noqa: UP045

    assert arguments_of(one) == {"sold": "event"}
    assert arguments_of(swapped) == {"uow": "unit", "sold": "event"}
    assert arguments_of(everything) == {"about": "message", "uow": "unit", "sold": "event"}
    assert arguments_of(keyword_only) == {"sold": "event", "message": "message"}
    assert arguments_of(plain) == {"sold": "event", "uow": "unit"}
    assert arguments_of(many) == {"sold": "events", "abouts": "messages", "uow": "unit"}
    assert arguments_of(annotated) == {"sold": "event"}
    assert arguments_of(also_by_hand) == {"sold": "event", "uow": "unit", "about": "message"}


def test_parameters_with_defaults_and_variadic_ones_are_left_alone() -> None:
    async def defaulted(sold: Sold, retries: int = 3, place: str | None = None) -> None: ...
    async def variadic(sold: Sold, *rest: Any, **more: Any) -> None: ...

    assert arguments_of(defaulted) == {"sold": "event"}
    assert arguments_of(variadic) == {"sold": "event"}


def test_annotations_may_name_classes_that_are_local_to_the_decorating_function() -> None:
    @event("local", topic="sales")
    class Local(msgspec.Struct):
        number: int

    router = Router()

    @router.consumes(Local)
    async def handle(local: Local, uow: UnitOfWork) -> None: ...

    assert dict(router.handlers()[0].arguments) == {"local": "event", "uow": "unit"}
    assert handle is router.handlers()[0].function


def test_consumes_returns_the_function_as_it_is() -> None:
    async def handle(sold: Sold) -> None: ...

    assert Router().consumes(Sold)(handle) is handle


# consuming: what cannot work


def positional(sold: Sold, /) -> None: ...
def no_event(uow: UnitOfWork) -> None: ...
def nothing() -> None: ...
def unannotated(sold) -> None: ...  # type: ignore[no-untyped-def]  # pyright: ignore
def another_event(paid: Paid) -> None: ...
def a_subject(sold: Sold, number: int) -> None: ...
def one_of_two(sold: Sold | Paid) -> None: ...
def two_events(one: Sold, two: Sold) -> None: ...
def event_and_list(one: Sold, many: list[Sold]) -> None: ...
def list_and_message(many: list[Sold], message: Message) -> None: ...
def event_and_messages(one: Sold, messages: list[Message]) -> None: ...
def unknown_name(sold: Sold, missing: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore
def unimported(sold: Sold, amount: Decimal) -> None: ...
def unreadable(sold: Sold) -> None: ...
def without_attribute(sold: msgspec.Nothing) -> None: ...  # type: ignore[name-defined]  # pyright: ignore


unreadable.__annotations__["sold"] = "Sold["


UNSUPPLIABLE: list[tuple[Callable[..., object], str]] = [
    (positional, r"positional: sold: .*Sold.? is supplied by its name: leave out the /"),
    (no_event, r"no_event: exactly one parameter takes the event: Sold or list\[Sold\]"),
    (nothing, r"nothing: exactly one parameter takes the event"),
    (unannotated, r"unannotated: parameter sold cannot be supplied: annotate it Sold"),
    (another_event, r"another_event: parameter paid: .*cannot be supplied.* or give it a default"),
    (a_subject, r"a_subject: parameter number: .*cannot be supplied"),
    (one_of_two, r"one_of_two: parameter sold: .*cannot be supplied"),
    (two_events, r"two_events: exactly one parameter takes the event"),
    (event_and_list, r"event_and_list: exactly one parameter takes the event"),
    (list_and_message, r"list_and_message: beside list\[Sold\], ask for list\[Message\]"),
    (event_and_messages, r"event_and_messages: beside Sold, ask for Message"),
    (unknown_name, r"unknown_name: an annotation cannot be read: name 'Missing' is not defined"),
    (unreadable, r"unreadable: an annotation cannot be read"),
    (without_attribute, r"without_attribute: an annotation cannot be read: .*Nothing"),
    (unimported, r"unimported: an annotation cannot be read: name 'Decimal' is not defined"),
]


@pytest.mark.parametrize(("function", "reason"), UNSUPPLIABLE, ids=lambda value: getattr(value, "__name__", ""))
def test_a_handler_whose_arguments_cannot_be_supplied_is_refused_at_decoration(
    function: Callable[..., Any], reason: str
) -> None:
    router = Router()
    with pytest.raises(HandlerSignatureError, match=r"tests\.test_routing\." + reason):
        router.consumes(Sold)(function)
    assert not router.handlers()


@pytest.mark.parametrize("thing", [NoEvent, Sold(1), "sold", None, int, list[Sold]])
def test_consuming_and_publishing_what_is_no_event_says_how_to_declare_it(thing: Any) -> None:
    with pytest.raises(EventDeclarationError, match=r"is no event: decorate the class with @event"):
        Router().consumes(thing)
    with pytest.raises(EventDeclarationError, match=r"is no event: decorate the class with @event"):
        Router().publishes(thing)


def test_a_decorator_without_brackets_says_what_to_write() -> None:
    router: Any = Router()
    with pytest.raises(EventDeclarationError, match=r"@consumes stands without .*first: name the event, @consumes\(Subscrib"):
        router.consumes(first)
    with pytest.raises(EventDeclarationError, match=r"@publishes stands without .*first: name the event, @publishes\(Subscr"):
        router.publishes(first)


def test_publishing_no_event_at_all_says_what_to_write() -> None:
    with pytest.raises(EventDeclarationError, match=r"name the events that may be published: @publishes\(SubscriberCreated\)"):
        Router().publishes()


def test_a_group_that_cannot_be_a_name_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="group 'two words': use 1 to 64 letters"):
        Router().consumes(Sold, group="two words")


@pytest.mark.parametrize(("retry", "attempts"), [(8, 8), ("8", 5), (RetryPolicy, 5)])
def test_a_retry_that_is_no_policy_is_refused_with_what_to_write(retry: Any, attempts: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"^retry=.* is no policy: write retry=RetryPolicy\(attempts={attempts}\)$"):
        Router().consumes(Sold, retry=retry)


def test_a_unit_of_work_cannot_be_variadic() -> None:
    def variadic(*units: UnitOfWork) -> None: ...

    with pytest.raises(HandlerSignatureError, match=r"variadic: .*units.* cannot be a UnitOfWork"):
        Router().publishes(Sold)(variadic)


# groups and type names


def first(sold: Sold) -> None: ...
def second(sold: Sold) -> None: ...


def test_two_handlers_of_one_type_need_two_groups(tmp_path: Path) -> None:
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db", broker=MemoryBroker())
    app.consumes(Sold)(first)
    with pytest.raises(EventDeclarationError, match=r"first and .*second both consume 'sold' in one group: give one .*group="):
        app.consumes(Sold)(second)
    with pytest.raises(EventDeclarationError, match="both consume 'sold' in one group"):
        app.consumes(Sold, group="shop")(second)  # the app's own group, by its name
    app.consumes(Sold, group="mails")(second)
    assert [(handler.function, handler.group) for handler in app.handlers()] == [(first, None), (second, "mails")]


def test_two_events_of_one_type_name_cannot_meet_in_an_app(tmp_path: Path) -> None:
    @event("sold", topic="sales")
    class Sold2(msgspec.Struct):
        number: int

    async def sell(uow: UnitOfWork) -> None: ...
    async def resell(sold: Sold2) -> None: ...

    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db", broker=MemoryBroker())
    app.publishes(Sold)(sell)
    with pytest.raises(EventDeclarationError, match=r"two events are called 'sold': .*Sold and .*Sold2: rename one"):
        app.consumes(Sold2)(resell)
    with pytest.raises(EventDeclarationError, match=r"two events are called 'sold'"):
        app.publishes(Sold2)(sell)


def test_a_refused_declaration_leaves_nothing_behind() -> None:
    @event("sold", topic="sales")
    class Sold2(msgspec.Struct):
        number: int

    async def sell(uow: UnitOfWork) -> None: ...
    async def resell(uow: UnitOfWork) -> None: ...

    router = Router()
    router.publishes(Sold)(sell)
    for function in (sell, resell):
        with pytest.raises(EventDeclarationError, match=r"two events are called 'sold'"):
            router.publishes(Sold2)(function)
    router.publishes(Paid)(resell)
    assert {spec.cls for spec in router.published()} == {Sold, Paid}


# routers


def test_a_function_of_a_router_that_no_app_includes_says_what_to_do() -> None:
    router = Router()

    @router.publishes(Sold)
    async def sell(uow: UnitOfWork) -> None: ...

    coroutine = sell()
    with pytest.raises(NoUnitOfWorkError, match=r"sell belongs to a router that no app includes: call app\.include\(router\)"):
        coroutine.__await__().send(None)


async def test_an_included_router_is_a_part_of_its_app(app: App) -> None:
    async with app.running(relay=False, consume=False):
        outer, inner = Router(), Router()

        @inner.publishes(Sold)
        async def sell(uow: UnitOfWork, number: int) -> Sold:
            return Sold(number)

        app.include(outer)
        outer.include(inner)
        inner.consumes(Paid)(paid_handler)
        await sell(1)
        assert published(app) == [("sold", 1)]
        assert [handler.function for handler in app.handlers()] == [paid_handler]
        assert [spec.cls for spec in app.published()] == [Sold]


async def paid_handler(paid: Paid) -> None: ...


def test_a_router_is_included_once(tmp_path: Path) -> None:
    router, other = Router(), Router()
    other.include(router)
    for including in (other, Router()):
        with pytest.raises(ConfigurationError, match=r"include"):
            including.include(router)


def test_what_is_no_router_is_not_included_and_told_so(tmp_path: Path) -> None:
    apps = [App(name, store=f"sqlite:///{tmp_path}/{name}.db", broker=MemoryBroker()) for name in ("one", "two")]
    with pytest.raises(ConfigurationError, match=r"App\('two'\) is an app, .*: decorate what is shared with a Router\(\), and"):
        apps[0].include(apps[1])
    things: list[tuple[Any, str]] = [(inspect, "something of type module"), (Router, "the class Router"), (None, "None")]
    for thing, what in things:
        with pytest.raises(ConfigurationError, match=rf"include\(\) takes a Router, not {what}: .*orders\.router"):
            apps[0].include(thing)


def test_a_router_cannot_include_itself_or_what_it_is_in() -> None:
    router, other = Router(), Router()
    with pytest.raises(ConfigurationError, match=r"include"):
        router.include(router)
    router.include(other)
    with pytest.raises(ConfigurationError, match=r"include"):
        other.include(router)


def test_a_router_that_clashes_with_its_app_is_refused_and_named(tmp_path: Path) -> None:
    app, router = App("shop", store=f"sqlite:///{tmp_path}/shop.db", broker=MemoryBroker()), Router()
    app.consumes(Sold)(first)
    router.consumes(Sold)(second)
    with pytest.raises(EventDeclarationError, match=r"first and .*second both consume 'sold'"):
        app.include(router)
    assert [handler.function for handler in app.handlers()] == [first]


# publishing: how functions are called


@pytest.mark.parametrize("late", ["consumer", "periodic", "router"])
async def test_what_a_running_app_would_not_hear_of_is_refused(app: App, late: str) -> None:
    """Its group may read the topic already, and would settle the function's events as those that it has none for."""
    router = Router()

    @router.consumes(Sold)
    async def consume(sold: Sold) -> None: ...

    async def call() -> None: ...

    decorate: dict[str, Callable[[], object]] = {
        "consumer": lambda: app.consumes(Sold)(consume),
        "periodic": lambda: app.publishes(Sold, every=1)(call),
        "router": lambda: app.include(router),
    }
    async with app:
        with pytest.raises(ConfigurationError, match=r"(consume|call) is decorated while its app runs.* before `async with"):
            decorate[late]()
        assert not app.handlers()
        app.publishes(Sold)(call)
    decorate[late]()


async def test_the_unit_of_work_is_supplied_wherever_it_stands(app: App) -> None:
    async with app.running(relay=False, consume=False):
        seen: list[tuple[object, ...]] = []

        @app.publishes(Sold)
        async def first(uow: UnitOfWork, number: int, *more: int, name: str = "", **rest: int) -> None:
            seen.append((type(uow), number, more, name, rest))

        @app.publishes(Sold)
        async def last(number: int, uow: UnitOfWork) -> None:
            seen.append((type(uow), number))

        @app.publishes(Sold)
        async def middle(number: int, uow: UnitOfWork, name: str = "none") -> None:
            seen.append((type(uow), number, name))

        @app.publishes(Sold)
        async def keyword_only(number: int, *, uow: UnitOfWork) -> None:
            seen.append((type(uow), number))

        @app.publishes(Sold)
        async def variadic_before(*numbers: int, uow: UnitOfWork) -> None:
            seen.append((type(uow), *numbers))

        @app.publishes(Sold)
        def plain(number: int, uow: UnitOfWork) -> None:
            seen.append((type(uow), number))

        @app.publishes(Sold)
        async def optional(number: int, uow: UnitOfWork | None = None) -> None:
            seen.append((type(uow), number))

        @app.publishes(Sold)
        async def absent(number: int) -> Sold:
            seen.append((number,))
            return Sold(number)

        await first(1, 2, 3, name="n", extra=4)
        await last(1)
        await last(number=2)
        await middle(1, "given")
        await middle(number=1)
        await keyword_only(1)
        await variadic_before(1, 2)
        await plain(1)
        await optional(1)
        await absent(7)
        unit = UnitOfWork
        assert seen == [
            (unit, 1, (2, 3), "n", {"extra": 4}),
            (unit, 1),
            (unit, 2),
            (unit, 1, "given"),
            (unit, 1, "none"),
            (unit, 1),
            (unit, 1, 2),
            (unit, 1),
            (unit, 1),
            (7,),
        ]
        assert published(app) == [("sold", 7)]


async def test_wrong_arguments_are_a_type_error_as_with_any_function(app: App) -> None:
    async with app.running(relay=False, consume=False):

        @app.publishes(Sold)
        async def leading(uow: UnitOfWork, number: int) -> None: ...

        @app.publishes(Sold)
        async def trailing(number: int, uow: UnitOfWork) -> None: ...

        for function in (leading, trailing):
            wrong: Any = function
            mistakes: list[tuple[tuple[int, ...], dict[str, int]]] = [
                ((), {}),
                ((1, 2, 3), {}),
                ((1,), {"other": 2}),
                ((1,), {"uow": 2}),
            ]
            for args, kwargs in mistakes:
                with pytest.raises(TypeError):
                    await wrong(*args, **kwargs)


@pytest.mark.parametrize("kind", [staticmethod, classmethod])
def test_what_stands_above_a_static_or_class_method_says_where_it_belongs(kind: Any) -> None:
    async def sell(sold: Sold) -> None: ...

    for decorator in (Router().consumes(Sold), Router().publishes(Sold)):
        with pytest.raises(HandlerSignatureError, match=rf"sell: @{kind.__name__} stands beneath: put it above the other"):
            decorator(kind(sell))


class Service:
    async def handle(self, sold: Sold) -> None: ...

    async def __call__(self, sold: Sold) -> None: ...

    @staticmethod
    async def still(sold: Sold) -> None: ...

    @classmethod
    async def of_class(cls, sold: Sold) -> None: ...


async def keep(sold: Sold, password: str = "") -> None: ...


@pytest.mark.parametrize(
    ("thing", "what"),
    [
        (functools.partial(keep, password="hunter2"), "an object of type partial"),
        (Service(), "an object of type Service"),
        (Service, r"the class tests\.test_routing\.Service"),
    ],
    ids=["partial", "object", "class"],
)
def test_what_is_no_function_is_refused_without_being_shown(thing: Any, what: str) -> None:
    def afterwards(function: Any) -> Any:
        return Router().consumes(Sold, after_commit=function)

    for decorate in (Router().consumes(Sold), Router().publishes(Sold), afterwards):
        with pytest.raises(
            HandlerSignatureError, match=rf"^{what} is .* an `async def` that calls it, .*service\.handle"
        ) as no:
            decorate(thing)
        assert "hunter2" not in str(no.value)


def test_a_method_of_no_object_is_told_to_be_bound() -> None:
    with pytest.raises(HandlerSignatureError, match=r"Service\.handle is a method.* app\.consumes\(Sold\)\(service\.handle\)"):
        Router().consumes(Sold)(Service.handle)

    async def tick(self: Service, uow: UnitOfWork) -> None: ...

    with pytest.raises(
        HandlerSignatureError, match=r"tick is a method.* app\.publishes\(\.\.\., every=\.\.\.\)\(service\.tick\)"
    ):
        Router().publishes(Sold, every=1)(tick)


def test_methods_of_an_object_or_a_class_and_what_wraps_a_function_are_handlers() -> None:
    wrapper: Any = functools.update_wrapper(functools.partial(keep, password="hunter2"), keep)
    for method in (Service().handle, Service.still, Service.of_class, Service().of_class, wrapper):
        assert arguments_of(method) == {"sold": "event"}


async def test_a_unit_of_work_for_what_is_no_event_says_so(app: App) -> None:
    async with app:
        things: list[Any] = [Sold(1), dict]
        for thing in things:
            with pytest.raises(EventDeclarationError, match="is no event: decorate the class with @event"):
                app.unit_of_work(thing)


def test_callers_see_a_signature_without_the_unit_of_work() -> None:
    @Router().publishes(Sold)
    async def sell(number: int, uow: UnitOfWork, *, name: str = "n") -> Sold:
        """Sell."""
        return Sold(number)

    assert list(inspect.signature(sell).parameters) == ["number", "name"]
    assert inspect.signature(sell).parameters["name"].default == "n"
    assert (sell.__name__, sell.__doc__, inspect.iscoroutinefunction(sell)) == ("sell", "Sell.", True)


async def test_a_function_publishes_what_it_returns(app: App) -> None:
    async with app.running(relay=False, consume=False):
        returned: list[Any] = [Sold(1), [Sold(2), Paid(3)], (Paid(4), None), [], (), None]

        @app.publishes(Sold, Paid)
        async def publish(uow: UnitOfWork, what: object) -> object:
            return what

        @app.publishes(Sold, Paid)
        def publish_plainly(uow: UnitOfWork, what: object) -> object:
            return what

        for function in (publish, publish_plainly):
            assert [await function(what) for what in returned] == returned
        assert published(app) == [("sold", 1), ("sold", 2), ("paid", 3), ("paid", 4)] * 2


@pytest.mark.parametrize("junk", [1, "sold", {"number": 1}, NoEvent(1), [Sold(1), 2], True, [[Sold(1)]], {Sold(1)}])
async def test_a_function_that_returns_junk_publishes_nothing_and_is_named(app: App, junk: Any) -> None:
    async with app.running(relay=False, consume=False):

        @app.publishes(Sold)
        async def publish(uow: UnitOfWork) -> object:
            return junk

        with pytest.raises(UndeclaredEventError, match=r"publish returned '\w+', which is no event: .* with it events or None"):
            await publish()
        assert published(app) == []


async def test_a_consuming_function_that_returns_something_is_told_to_return_none(app: App) -> None:
    @app.consumes(Sold, retry=RetryPolicy(attempts=1))
    async def count(sold: Sold) -> int:
        return sold.number

    async with app:
        async with app.unit_of_work() as uow:
            uow.publish(Sold(1))
        await drain(app)
        (letter,) = await app.dead_letters.find()
    assert "count returned 'int', which is no event: a function without @publishes returns None" in letter.summary


async def yielding_async(sold: Sold, uow: UnitOfWork) -> AsyncGenerator[Paid, None]:
    yield Paid(sold.number)


def yielding(sold: Sold) -> Generator[Paid, None, None]:
    yield Paid(sold.number)


@pytest.mark.parametrize("function", [yielding, yielding_async])
def test_a_generator_function_is_refused_at_decoration_as_nothing_of_it_would_run(function: Callable[..., Any]) -> None:
    router = Router()

    def handle(sold: Sold) -> None: ...

    told = rf"{function.__name__} is a generator function.*return events, a list of them"
    with pytest.raises(HandlerSignatureError, match=told):
        router.publishes(Paid)(function)
    with pytest.raises(HandlerSignatureError, match=told):
        router.consumes(Sold)(function)
    with pytest.raises(HandlerSignatureError, match=told):
        router.consumes(Sold, after_commit=function)(handle)
    assert router.handlers() == []


def test_both_decorators_stack_in_both_orders() -> None:
    one, other = Router(), Router()

    @one.consumes(Sold)
    @one.publishes(Paid)
    async def pay(sold: Sold, uow: UnitOfWork) -> Paid:
        return Paid(sold.number)

    @other.publishes(Paid)
    @other.consumes(Sold)
    async def pay_too(sold: Sold, uow: UnitOfWork) -> Paid:
        return Paid(sold.number)

    for router, function in ((one, pay), (other, pay_too)):
        (handler,) = router.handlers()
        assert dict(handler.arguments) == {"sold": "event", "uow": "unit"}
        assert list(handler.publishes) == [Paid]
        assert list(inspect.signature(function).parameters) == ["sold"]
        assert handler.is_async


async def test_decorators_of_an_app_and_its_routers_stack(app: App) -> None:
    router = Router()

    @router.consumes(Sold)
    @app.publishes(Paid)
    async def pay(sold: Sold) -> Paid:
        return Paid(sold.number)

    @router.publishes(Sold)
    @app.publishes(Paid)
    async def sell(uow: UnitOfWork, number: int) -> list[Sold | Paid]:
        return [Sold(number), Paid(number)]

    app.include(router)
    selling: Any = sell
    async with app:
        await selling(1)
        await drain(app)
    assert published(app) == [("sold", 1), ("paid", 1), ("paid", 1)]


async def test_a_function_of_two_apps_is_refused_when_one_of_them_is_opened(app: App) -> None:
    """Its events would be refused with each message, one after the other."""

    @app.consumes(Sold)
    @Router().publishes(Paid)
    async def pay(sold: Sold) -> Paid:
        return Paid(sold.number)

    with pytest.raises(
        EventDeclarationError, match=r"pay consumes in one app and publishes .*Paid in another: use decorators of"
    ):
        async with app:
            pass


def counted(function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    """A decorator of the user's own."""

    @functools.wraps(function)
    async def counting(*args: P.args, **kwargs: P.kwargs) -> R:
        calls.append(function.__name__)
        return await function(*args, **kwargs)

    return counting


calls: list[str] = []


async def test_a_users_own_decorator_between_ours_is_run(app: App) -> None:
    async with app.running(relay=False, consume=False):
        calls.clear()

        @app.consumes(Sold)
        @counted
        @app.publishes(Paid)
        async def pay(sold: Sold, uow: UnitOfWork) -> Paid:
            return Paid(sold.number)

        @app.publishes(Paid)
        @counted
        async def pay_again(uow: UnitOfWork, number: int) -> Paid:
            return Paid(number)

        await pay_again(5)
        await app.handlers()[0].function(sold=Sold(6))
        assert calls == ["pay_again", "pay"]
        assert published(app) == [("paid", 5), ("paid", 6)]


async def test_what_is_published_beneath_a_users_own_decorator_is_published_once(app: App) -> None:
    @app.consumes(Sold)
    @counted
    @app.publishes(Paid)
    async def pay(sold: Sold, uow: UnitOfWork) -> Paid:
        return Paid(sold.number)

    @app.publishes(Sold)
    @counted
    @app.publishes(Sold)
    async def sell(uow: UnitOfWork, number: int) -> Sold:
        return Sold(number)

    async with app:
        await sell(5)
        await drain(app)
    assert published(app) == [("sold", 5), ("paid", 5)]


async def test_what_another_publishing_function_returned_may_be_returned_and_is_published_once(app: App) -> None:
    @app.publishes(Paid)
    async def pay(uow: UnitOfWork, number: int) -> Paid:
        return Paid(number)

    @app.publishes(Sold, Paid)
    async def sell_and_pay(uow: UnitOfWork, number: int) -> list[Sold | Paid]:
        return [Sold(number), await pay(number), Paid(number)]

    @app.consumes(Sold)
    async def pay_twice(sold: Sold) -> Paid:
        return await pay(sold.number + 1)

    async with app:
        await sell_and_pay(1)
        await drain(app)
        assert await app.dead_letters.find() == []
    assert published(app) == [("paid", 1), ("sold", 1), ("paid", 1), ("paid", 2)]


async def test_what_another_apps_function_returned_is_published_here_too(app: App, tmp_path: Path) -> None:
    """That is in an outbox of its own."""
    other = App("bank", store=f"sqlite:///{tmp_path}/bank.db", broker=MemoryBroker())

    @other.publishes(Paid)
    async def pay(uow: UnitOfWork, number: int) -> Paid:
        return Paid(number)

    @app.publishes(Paid)
    async def pay_in_both(uow: UnitOfWork, number: int) -> Paid:
        return await pay(number)

    await other.migrate()
    async with app.running(relay=False, consume=False), other.running(relay=False, consume=False):
        await pay_in_both(1)
    assert published(app) == published(other) == [("paid", 1)]


async def test_an_object_that_is_returned_again_and_again_is_published_each_time(app: App) -> None:
    always = Paid(0)

    @app.publishes(Paid)
    async def pay(uow: UnitOfWork) -> list[Paid]:
        return [always, always]

    async with app.running(relay=False, consume=False):
        async with app.unit_of_work():
            await pay()
            await pay()
        assert published(app) == [("paid", 0)] * 4


async def test_what_a_wrapper_returns_instead_is_not_taken_for_published(app: App) -> None:
    """Whatever it says with `functools.wraps` that it wraps."""
    async with app.running(relay=False, consume=False):

        @app.publishes(Sold)
        async def sell(uow: UnitOfWork, number: int) -> Sold:
            return Sold(number)

        @app.publishes(Paid, Sold)
        @functools.wraps(sell)
        async def sell_and_pay(number: int) -> list[Sold | Paid]:
            return [await sell(number), Paid(number)]

        function: Any = sell_and_pay
        await function(5)
    assert published(app) == [("sold", 5), ("paid", 5)]


async def test_a_handler_that_publishes_on_is_run_in_the_consumers_transaction(tmp_path: Path) -> None:
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db", broker=MemoryBroker())
    got: list[tuple[int, str]] = []

    @app.publishes(Sold)
    async def sell(uow: UnitOfWork, number: int) -> Sold:
        return Sold(number)

    @app.consumes(Sold)
    @app.publishes(Paid)
    async def pay(sold: Sold) -> Paid:
        return Paid(sold.number)

    @app.consumes(Paid)
    def note(paid: Paid, about: Message) -> None:
        got.append((paid.number, about.headers["traceparent"].split("-")[1]))

    await app.migrate()
    async with app:
        await sell(1)
        await until(lambda: got)
    assert [number for number, _ in got] == [1]
    assert published(app) == [("sold", 1), ("paid", 1)]


async def test_a_users_decorator_that_is_no_coroutine_function_is_told_so(app: App) -> None:
    """Its wrapper returns a coroutine from a plain ``def``: nobody would ever await it."""

    async with app.running(relay=False, consume=False):

        def passing(function: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(function)
            def passed(*args: Any, **kwargs: Any) -> Any:
                return function(*args, **kwargs)

            return passed

        @app.publishes(Sold)
        @passing
        async def sell(uow: UnitOfWork) -> Sold:
            return Sold(1)

        with pytest.raises(HandlerSignatureError, match=r"sell is no coroutine function .*make the wrapper `async def`"):
            await sell()
