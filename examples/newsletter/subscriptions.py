"""Takes sign-ups over HTTP, and publishes each one together with its row.

Set ``SUBSCRIPTIONS_DATABASE`` and ``SUBSCRIPTIONS_BROKER`` (URLs) and ``SUBSCRIPTIONS_PORT`` to change where.
"""

import os
import sqlite3
import unicodedata
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec
import uvicorn
from events import SubscriberCreated
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from storage import execute_on

from outboxkit import App, StoreError, UnitOfWork

MAX_EMAIL, MAX_NAME, MAX_BODY_BYTES = 254, 200, 16 * 1024
SCHEMA = "CREATE TABLE IF NOT EXISTS subscribers (email TEXT PRIMARY KEY, name TEXT NOT NULL)"
ADD = "INSERT INTO subscribers (email, name) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING email"

DATABASE = os.environ.get("SUBSCRIPTIONS_DATABASE", "sqlite:///subscriptions.db")

execute = execute_on(DATABASE)
outbox = App("subscriptions", store=DATABASE, broker=os.environ.get("SUBSCRIPTIONS_BROKER", "sqlite:///broker.db"))


class SignUp(msgspec.Struct):
    """The body of a request. Addresses that differ only in case or in spaces around them are one subscriber."""

    email: str
    name: str

    def __post_init__(self) -> None:
        self.email, self.name = self.email.strip().lower(), self.name.strip()
        if not 1 <= len(self.name) <= MAX_NAME:
            raise ValueError(f"a name has 1 to {MAX_NAME} characters")
        user, at, host = self.email.partition("@")
        if not (user and at and host) or "@" in host or len(self.email) > MAX_EMAIL or len(self.email.split()) > 1:
            raise ValueError(f"an address is user@host, of at most {MAX_EMAIL} characters, without spaces")
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in self.email + self.name):
            raise ValueError("control characters and lone surrogates are not text")


class SignedUpAlreadyError(Exception):
    """There is a subscriber with this address."""


@outbox.publishes(SubscriberCreated)
async def sign_up(uow: UnitOfWork, email: str, name: str) -> SubscriberCreated:
    """Add a subscriber and announce it: both, or neither."""
    if not await execute(uow, ADD, email, name):
        raise SignedUpAlreadyError
    return SubscriberCreated(email, name)


async def post_subscriber(request: Request) -> JSONResponse:
    """POST /subscribers."""
    try:
        wanted = msgspec.json.decode(await limited_body(request), type=SignUp)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return JSONResponse({"error": str(error)}, 422)
    try:
        await sign_up(email=wanted.email, name=wanted.name)
    except SignedUpAlreadyError:
        return JSONResponse({"error": f"{wanted.email} is signed up already"}, 409)
    except (StoreError, sqlite3.OperationalError):
        return JSONResponse({"error": "the database is away: try again later"}, 503)
    return JSONResponse({"email": wanted.email, "name": wanted.name}, 201)


async def limited_body(request: Request) -> bytes:
    """Read a body, but not more of it than one may have."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise ValueError(f"the body is larger than {MAX_BODY_BYTES} bytes")
    return body


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncGenerator[None, None]:
    """Create the tables, and relay for as long as the service runs."""
    await outbox.migrate()
    async with outbox:
        async with outbox.unit_of_work() as uow:
            await execute(uow, SCHEMA)
        yield


api = Starlette(routes=[Route("/subscribers", post_subscriber, methods=["POST"])], lifespan=lifespan)

if __name__ == "__main__":
    uvicorn.run(api, port=int(os.environ.get("SUBSCRIPTIONS_PORT", "8000")))
