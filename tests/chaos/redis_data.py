"""A Redis whose data can be taken away, or given back as it once was."""

import shutil
from pathlib import Path
from typing import Any

import redis

from outboxkit.testing.redis_server import RedisServer


class MortalRedis(RedisServer):
    """A server that keeps what it is told over a crash, unless that is taken away."""

    def __init__(self, binary: str) -> None:
        # What the system has been given outlives the server, as nobody cuts the machine's power here.
        super().__init__(binary, persistent=True, options=("--appendfsync", "no"))
        self._kept: list[Path] = []

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
        copy = self._folder.with_name(f"{self._folder.name}-dump-{len(self._kept)}")
        self.pause()
        try:
            shutil.copytree(self._folder, copy, ignore=shutil.ignore_patterns("log", "temp-*"))
        finally:
            self.resume()
        self._kept.append(copy)
        for old in self._kept[:-3]:
            shutil.rmtree(old, ignore_errors=True)

    def restart_without_data(self) -> None:
        """Crash, and come back empty."""
        self.kill()
        self._forget()
        self.start()

    def restart_from_dump(self, age: int) -> None:
        """Crash, and come back as of a copy: the last one, or one of those before it."""
        dumps = [dump for dump in self._kept if dump.exists()]
        self.kill()
        self._forget()
        shutil.copytree(dumps[-1 - age % len(dumps)], self._folder, dirs_exist_ok=True)
        self.start()

    def stop(self) -> None:
        """Stop it and remove its data, and all copies."""
        super().stop()
        for copy in self._kept:
            shutil.rmtree(copy, ignore_errors=True)

    @property
    def _folder(self) -> Path:
        assert self._directory is not None
        return self._directory

    def _forget(self) -> None:
        for child in self._folder.iterdir():
            if child.is_dir():
                shutil.rmtree(child)
            elif child.name != "log":
                child.unlink()
