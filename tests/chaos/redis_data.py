"""A Redis whose data can be taken away, or given back as it once was."""

import shutil
from pathlib import Path
from typing import Any

import redis

from outboxkit.testing.redis_server import RedisServer

_DUMPS = "dumps"
_OURS = ("log", _DUMPS)
"""What is in the server's folder and is not its data."""
_KEPT = 3
"""How many copies are."""


class MortalRedis(RedisServer):
    """A server that keeps what it is told over a crash, unless that is taken away."""

    def __init__(self, binary: str) -> None:
        # What the system has been given outlives the server, as nobody cuts the machine's power here.
        super().__init__(binary, persistent=True, options=("--appendfsync", "no"))
        self._dumps = 0

    def ask(self, *words: str | int) -> Any:
        """Send one command, by no detour, and return the reply."""
        driver: Any = redis.Redis  # its annotations are incomplete
        with driver(port=self.port, socket_timeout=10, decode_responses=True) as client:
            return client.execute_command(*words)

    def info(self, section: str) -> dict[str, Any]:
        """Return a section of what it tells of itself."""
        found: dict[str, Any] = self.ask("INFO", section)
        return found

    def keep_dump(self) -> None:
        """Copy what would outlive a crash now."""
        self._dumps += 1
        self.pause()
        try:
            shutil.copytree(self._folder, self._dump(self._dumps), ignore=shutil.ignore_patterns(*_OURS, "temp-*"))
        finally:
            self.resume()
        shutil.rmtree(self._dump(self._dumps - _KEPT), ignore_errors=True)

    def restart_without_data(self) -> None:
        """Crash, and come back empty."""
        self.kill()
        self._forget()
        self.start()

    def restart_from_dump(self, age: int) -> None:
        """Crash, and come back as of a copy: the last one, or one of those before it as far as they are kept."""
        self.kill()
        self._forget()
        shutil.copytree(self._dump(max(1, self._dumps - age % _KEPT)), self._folder, dirs_exist_ok=True)
        self.start()

    @property
    def _folder(self) -> Path:
        assert self._directory is not None
        return self._directory

    def _dump(self, number: int) -> Path:
        return self._folder / _DUMPS / str(number)

    def _forget(self) -> None:
        for child in self._folder.iterdir():
            if child.name not in _OURS:
                shutil.rmtree(child) if child.is_dir() else child.unlink()
