"""`Router`: ``@publishes`` and ``@consumes``, and what they were put on."""

import functools
import inspect
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from datetime import timedelta
from types import FrameType
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar, overload

from outboxkit.checking import described
from outboxkit.config import checked_name
from outboxkit.errors import (
    ConfigurationError,
    EventDeclarationError,
    HandlerSignatureError,
    NoUnitOfWorkError,
)
from outboxkit.events import EventType, qualified, require_decodable, unique_names
from outboxkit.handler import Handler, after_commit_of, declared_event, publish_returned
from outboxkit.periodic import Periodic, periodic, unique_periodics
from outboxkit.retry import RetryPolicy
from outboxkit.schedule import schedule_of
from outboxkit.signatures import handler_arguments, qualified_name, require_function, unit_binder
from outboxkit.unit_of_work import Declared, UnitOfWork

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

_plain_of: weakref.WeakKeyDictionary[Callable[..., Any], Callable[..., Any]] = weakref.WeakKeyDictionary()
"""What ``@publishes`` wrapped. Not ``__wrapped__``, which would also lead past the user's own decorators."""


_events_of: weakref.WeakKeyDictionary[Callable[..., Any], set[type[Any]]] = weakref.WeakKeyDictionary()
"""What each function was declared to publish, by whichever router's decorator."""


class Runner(Protocol):
    """What a router needs of the app it is included in."""

    @property
    def runs_plain_functions(self) -> bool:
        """Whether its database is driven from a thread, where plain functions can run."""
        ...

    @property
    def is_running(self) -> bool:
        """Whether its loops run, which have been given what was decorated until then."""
        ...

    async def in_unit_of_work(
        self, declared: Declared, function: Callable[[UnitOfWork], Coroutine[Any, Any, R]], *, plain: bool
    ) -> R:
        """Run a function in a unit of work that may publish these events.

        `plain`: it awaits nothing but `UnitOfWork.run`.
        """
        ...


class PublishesDecorator(Protocol):
    """The type of what ``publishes`` returns: the unit of work is supplied, everything else stays as declared."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[UnitOfWork, P], Awaitable[R]], /
    ) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, function: Callable[..., Awaitable[R]], /) -> Callable[..., Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[UnitOfWork, P], R], /) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, function: Callable[..., R], /) -> Callable[..., Coroutine[Any, Any, R]]: ...


class Router:
    """Collects decorated functions; an `App` is a router with connections.

    Include it in exactly one app: ``app.include(router)``.
    """

    def __init__(self) -> None:
        self._handlers: list[Handler] = []
        self._published: dict[Callable[..., Any], dict[type[Any], EventType]] = {}
        self._periodics: list[Periodic] = []
        self._routers: list[Router] = []
        self._parent: Router | None = None

    def include(self, router: "Router") -> None:
        """Add another router's functions to this one.

        Raises:
            ConfigurationError: it is included somewhere already, or is an app, or no router; this app is running, and would not
                hear of what it consumes, or is called by itself.
            EventDeclarationError: an event or handler of it clashes with one here.
        """
        if not isinstance(router, Router):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without a checker
            raise ConfigurationError(
                f"include() takes a Router, not {described(router)}: give the one whose decorators its functions have, "
                "app.include(orders.router)"
            )
        if router._parent is None and router._runner() is not None:  # noqa: SLF001 - its own class
            raise ConfigurationError(
                f"{router!r} is an app, with a database of its own: decorate what is shared with a Router(), and include that"
            )
        if router._parent is not None or self._is_in(router):  # noqa: SLF001
            raise ConfigurationError("this router is included already: make one router for each app")
        for name in [handler.name for handler in router.handlers()] + [each.name for each in router.periodics()]:
            self._require_heard(name)
        self._routers.append(router)
        router._parent = self  # noqa: SLF001
        try:
            self._check()
        except ConfigurationError:
            self._routers.remove(router)
            router._parent = None  # noqa: SLF001
            raise

    def handlers(self) -> Sequence[Handler]:
        """All consuming functions, those of included routers too."""
        return [*self._handlers, *(handler for router in self._routers for handler in router.handlers())]

    def published(self) -> Sequence[EventType]:
        """All events that some function here may publish, those of included routers too."""
        own = (spec for declared in self._published.values() for spec in declared.values())
        return list(dict.fromkeys([*own, *(spec for router in self._routers for spec in router.published())]))

    def periodics(self) -> Sequence[Periodic]:
        """All functions that are called by themselves, those of included routers too."""
        return [*self._periodics, *(each for router in self._routers for each in router.periodics())]

    def _functions(self) -> Sequence[Callable[..., Any]]:
        own = [*self._published, *(handler.function for handler in self._handlers)]
        return [*own, *(function for router in self._routers for function in router._functions())]  # noqa: SLF001 - its own class

    def consumes(
        self,
        event: type[Any],
        *,
        group: str | None = None,
        retry: RetryPolicy | None = None,
        ordered: bool = True,
        on_dead: Literal["continue", "hold"] = "continue",
        after_commit: Callable[..., Any] | None = None,
    ) -> Callable[[F], F]:
        """Run the decorated function for each event of a type, once, in one transaction with its inbox row.

        The function's arguments are chosen by annotation: the event (or a ``list`` of them, for set-based SQL), `UnitOfWork`,
        `Message` (a ``list`` of them beside a list of events). It may be ``async def``, or, on SQLite, a plain ``def``, which
        runs on the database's thread. It is returned as it is, so that tests can call it. It returns None, or, with `publishes`
        beside this, events: whatever else it returns is its message's failure, as nobody would see it.

        What it raises is its message's failure; `SystemExit` and the like too, which end no process here.

        Args:
            event: a class declared with ``@event``.
            group: the consumer group; the app's name when not given. Groups are independent readers: another reaction to
                the same event is another group. It belongs to one database.
            retry: when to run a failed message again; the app's settings decide when not given.
            ordered: whether later messages of a key wait while an earlier one does.
            on_dead: what they do when it is dead: ``"continue"``, or ``"hold"`` until somebody retries or discards it.
            after_commit: a function to run for each message once its effect is durable, best effort: never before, at most
                once, and not at all when the process ends in between. It may ask for the event and the `Message`, and may be
                plain. What has to happen at least once belongs in the handler, with `Message.id` as its idempotency key.

        Raises:
            HandlerSignatureError, EventDeclarationError: at decoration.
            ConfigurationError: `on_dead` is neither of the two, or there is no order to hold; `retry` is no policy; the app is
                running, and would not hear of it.
        """
        spec = declared_event(event, "consumes")
        if on_dead not in ("continue", "hold") or (on_dead == "hold" and not ordered):
            raise ConfigurationError(f'on_dead={on_dead!r}: "continue", or "hold" for an ordered handler')
        if retry is not None and not isinstance(retry, RetryPolicy):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without a checker
            attempts = retry if isinstance(retry, int) else 5
            raise ConfigurationError(f"retry={retry!r} is no policy: write retry=RetryPolicy(attempts={attempts})")
        if group is not None:
            checked_name("group", group)
        names = _names_of(inspect.currentframe())  # annotations may name classes that are local to the caller
        afterwards = None if after_commit is None else after_commit_of(after_commit, spec, names)

        def register(function: F) -> F:
            require_function(function)
            plain = _plain_of.get(function, function)
            self._require_heard(qualified_name(plain))
            arguments = handler_arguments(plain, spec, names)
            handler = Handler(
                function=plain,
                name=qualified_name(plain),
                event=spec,
                group=group,
                retry=retry,
                ordered=ordered,
                on_dead=on_dead,
                after_commit=afterwards,
                arguments=arguments,
                takes_list="events" in arguments.values(),
                is_async=inspect.iscoroutinefunction(plain),
                publishes=self._published.setdefault(plain, {}),
            )
            self._handlers.append(handler)
            try:
                self._check()
            except ConfigurationError:
                self._handlers.remove(handler)
                raise
            return function

        return register

    def publishes(
        self, *events: type[Any], every: timedelta | float | None = None, cron: str | None = None, tz: str | None = None
    ) -> PublishesDecorator:
        """Run the decorated function in a unit of work, and publish the events it returns.

        The function returns an event, a list or tuple of them, or None; with `UnitOfWork.publish` it can publish any number
        on the way. What another decorated function returned to it, it may return too: that very object is published once. Only
        the events named here may be published. A parameter annotated `UnitOfWork` is supplied; put it first and type checkers
        know the rest. Calling it inside an open unit of work of the same app joins that, in a savepoint. A plain ``def``, on
        SQLite, runs on the database's thread; its caller awaits it all the same, and calls that wait at the same time share
        one commit, which makes them many times faster together.

        When the database undoes the transaction in favour of another, the function runs again, from the start: what it does
        outside the database has to bear that. Postgres does so after a serialization failure or a deadlock; SQLite when a plain
        function that shared the commit ended the transaction (by a conflict clause with ROLLBACK).

        With `every` or `cron` it is a **periodic function** too, and the app calls it by itself: once for each moment, however
        many processes run, in one transaction with a note of that moment. A parameter annotated `datetime` is given it. When it
        raises, it is called again; of several moments that have passed meanwhile, only for the latest.

        Args:
            events: the classes whose events it may publish.
            every: how often to call it, in seconds unless it is a `timedelta`; counted from the beginning of 1970 (UTC), so
                that every=3600 is each full hour.
            cron: when to call it, as a cron expression of five fields, or of six with the seconds in front.
            tz: the time zone whose clock `cron` goes by ("Europe/Berlin"); UTC when not given.

        Raises:
            HandlerSignatureError, EventDeclarationError: at decoration.
            ConfigurationError: `every`, `cron` or `tz` make no sense, another periodic function has this one's name, or the
                app is running, and would never call it.
        """
        if not events:
            raise EventDeclarationError("name the events that may be published: @publishes(SubscriberCreated)")
        declared = {event: declared_event(event, "publishes") for event in events}
        names = _names_of(inspect.currentframe())  # annotations may name classes that are local to the caller

        def wrap(function: Callable[..., Any], /) -> Callable[..., Coroutine[Any, Any, Any]]:
            require_function(function)
            plain = _plain_of.get(function, function)
            bind, visible = unit_binder(plain, names)
            schedule = schedule_of(qualified_name(plain), every, cron, tz)
            if schedule:
                self._require_heard(qualified_name(plain))
            is_async = inspect.iscoroutinefunction(plain)
            published = self._published.setdefault(plain, {})

            @functools.wraps(plain)
            async def call(*args: Any, **kwargs: Any) -> Any:
                async def work(unit: UnitOfWork) -> Any:
                    if is_async:
                        values, named = bind(unit, args, kwargs)
                        returned = await plain(*values, **named)
                    else:
                        returned = await unit.run(lambda unit: _apply(plain, bind(unit, args, kwargs)))
                    publish_returned(unit, returned, qualified_name(plain))
                    return returned

                return await self._required_runner(plain).in_unit_of_work(published, work, plain=not is_async)

            call.__signature__ = visible  # type: ignore[attr-defined]
            self._declare(plain, declared, [periodic(plain, call, schedule, visible, names)] if schedule else [])
            _plain_of[call] = plain
            return call

        return wrap

    def _declare(self, function: Callable[..., Any], events: Declared, periodics: Sequence[Periodic]) -> None:
        named = self._published.setdefault(function, {})
        before = dict(named)
        named.update(events)
        self._periodics += periodics
        try:
            self._check()
        except ConfigurationError:
            named.clear()  # in place: a handler may hold it
            named.update(before)
            self._periodics = [each for each in self._periodics if each not in periodics]
            raise
        _events_of.setdefault(function, set()).update(events)

    def _runner(self) -> Runner | None:
        """The app at the top, None while there is none."""
        return self._parent._runner() if self._parent is not None else None  # noqa: SLF001 - its own class

    def _required_runner(self, function: Callable[..., Any]) -> Runner:
        runner = self._runner()
        if runner is None:
            raise NoUnitOfWorkError(
                f"{qualified_name(function)} belongs to a router that no app includes: call app.include(router)"
            )
        return runner

    def _require_heard(self, function: str) -> None:
        runner = self._runner()
        if runner is not None and runner.is_running:
            # A group that reads the topic already would take the function's events for those that it has none for.
            raise ConfigurationError(
                f"{function} is decorated while its app runs, which would never call it: decorate (and include) before "
                "`async with app:`"
            )

    def _is_in(self, router: "Router") -> bool:
        return self is router or (self._parent is not None and self._parent._is_in(router))  # noqa: SLF001

    def _group_of(self, handler: Handler) -> str | None:
        return self._parent._group_of(handler) if self._parent is not None else handler.group  # noqa: SLF001

    def _check(self) -> None:
        """Refuse two classes of one type name, two handlers of one type in one group, and what the database cannot run."""
        if self._parent is not None:
            return self._parent._check()  # noqa: SLF001 - its own class
        runner = self._runner()
        if runner is not None and not runner.runs_plain_functions:
            for function in self._functions():
                if not inspect.iscoroutinefunction(function):
                    raise HandlerSignatureError(
                        f"{qualified_name(function)} is a plain function, and this app's database has no thread to run it on: "
                        "write `async def`"
                    )
        unique_names([*self.published(), *(handler.event for handler in self.handlers())])
        unique_periodics(self.periodics())
        taken: dict[tuple[str | None, str], Handler] = {}
        for handler in self.handlers():
            other = taken.setdefault((self._group_of(handler), handler.event.name), handler)
            if other is not handler:
                raise EventDeclarationError(
                    f"{other.name} and {handler.name} both consume {handler.event.name!r} in one group: give one of them a "
                    'group of its own, @consumes(..., group="...")'
                )
        self._share_declarations()
        return None

    def _share_declarations(self) -> None:
        """Have the decorators of a function know of what others say that it publishes, on whichever router of the app."""
        routers = list(self._tree())
        found: dict[Callable[..., Any], dict[type[Any], EventType]] = {}
        for router in routers:
            for function, events in router._published.items():  # noqa: SLF001 - its own class
                found.setdefault(function, {}).update(events)
        for router in routers:
            for function, events in router._published.items():  # noqa: SLF001
                events.update(found[function])

    def _tree(self) -> Iterator["Router"]:
        yield self
        for router in self._routers:
            yield from router._tree()  # noqa: SLF001 - its own class

    def require_complete(self) -> None:
        """Refuse what could not be found out when it was decorated.

        Raises:
            EventDeclarationError: a handler publishes by a decorator of another app, and here it may not; or the class of an
                event names what is not there.
        """
        for spec in [*self.published(), *(handler.event for handler in self.handlers())]:
            require_decodable(spec)
        for handler in self.handlers():
            for event in _events_of.get(handler.function, set()) - handler.publishes.keys():
                raise EventDeclarationError(
                    f"{handler.name} consumes in one app and publishes {qualified(event)} in another: use decorators of one "
                    "app, or of routers that it includes"
                )


def _names_of(frame: FrameType | None) -> Mapping[str, Any]:
    """The local names where a decorator was used."""
    caller = frame.f_back if frame is not None else None
    return dict(caller.f_locals) if caller is not None else {}


def _apply(function: Callable[..., Any], call: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    return function(*call[0], **call[1])
