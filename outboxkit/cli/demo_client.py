"""The demo's client: signs people up over HTTP, on several connections, and keeps its own record of the answers."""

import http.client
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from outboxkit.cli.demo_signups import SignUp

CONNECTIONS = 8
ANSWER_SECONDS = 30.0

_TIMEOUT_SECONDS = 10.0
_PAUSE_SECONDS = 0.02
_DEFINITE = frozenset((201, 409, 422))


class Record:
    """What the service said; the other side of the comparison with the databases."""

    def __init__(self) -> None:
        self.accepted: set[str] = set()
        """Signed up: 201, or 409, as an earlier request had been accepted, perhaps one whose answer never came."""
        self.created: Counter[str] = Counter()
        """How often there was a 201."""
        self.refused: set[str] = set()
        """422 although it was meant well: the service is stricter than we are."""
        self.unanswered: list[str] = []
        """Why sign-ups never got a definite answer."""

    def add(self, email: str | None, status: int) -> None:
        """Note a definite answer; should nonsense be accepted, the databases will hold an address that nobody sent."""
        if email is None:
            return
        if status == 422:
            self.refused.add(email)
            return
        self.accepted.add(email)
        self.created[email] += status == 201


class Client:
    """Sends requests in order, from several threads, each until it has a definite answer.

    Args:
        port: where the service listens on this machine.
        requests: what to send.
        sent: called with the index of a request each time it has been sent and its answer is still out.
    """

    def __init__(self, port: int, requests: Sequence[SignUp], sent: Callable[[int], None]) -> None:
        self.record = Record()
        self.answered = 0
        self._port = port
        self._requests = requests
        self._sent = sent
        self._indices = itertools.count()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        # Daemons: a stop must not wait for the answer of a service that has been stopped.
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(CONNECTIONS)]

    def start(self) -> None:
        """Start sending."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Send nothing more."""
        self._stopping.set()

    @property
    def done(self) -> bool:
        """Whether all is sent and answered, or given up."""
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT_SECONDS)
        while not self._stopping.is_set() and (index := next(self._indices)) < len(self._requests):
            self._sign_up(connection, index)
        connection.close()

    def _sign_up(self, connection: http.client.HTTPConnection, index: int) -> None:
        give_up = time.monotonic() + ANSWER_SECONDS
        status, why = self._post(connection, index)
        while status not in _DEFINITE and time.monotonic() < give_up and not self._stopping.wait(_PAUSE_SECONDS):
            status, why = self._post(connection, index)
        with self._lock:
            if status in _DEFINITE:
                self.record.add(self._requests[index].email, status)
                self.answered += 1
            else:
                self.record.unanswered.append(why)

    def _post(self, connection: http.client.HTTPConnection, index: int) -> tuple[int, str]:
        """Send one request; returns its answer's status, 0 when the connection died and nobody knows, and what was said."""
        try:
            connection.request("POST", "/subscribers", self._requests[index].body, {"Content-Type": "application/json"})
            self._sent(index)
            response = connection.getresponse()
            return response.status, f"{response.status} {response.read()[:200]!r}"
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return 0, repr(error)
