"""The example `orders`, run as its README says, on Postgres and Redis."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import anyio.to_thread
import asyncpg
import httpx
import pytest

from tests.servers import drop_database, new_database
from tests.waiting import until

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "orders"
ORDERS = 30


class Orders:
    """Both services, started with the commands that the README shows."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
        self.folder = folder
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = {**os.environ, **environment}
        self._commands = _commands(folder / "README.md")
        self._services: dict[str, subprocess.Popen[bytes]] = {}

    def create_tables(self) -> None:
        for script in ("shop.py", "billing.py"):
            words = self._words(f"python {script}")
            subprocess.run(words, cwd=self.folder, env=self._environment, check=True, timeout=60)

    async def start(self, *services: str) -> None:
        for name in services:
            self._launch(name)
        await until(self._answers, seconds=30.0)

    def _launch(self, name: str) -> None:
        command = "uvicorn shop:api --port 8000" if name == "shop" else "outboxkit run billing:app"
        words = [word.replace("8000", str(self.port)) for word in self._words(command)]
        with (self.folder / f"{name}.log").open("ab") as log:
            self._services[name] = subprocess.Popen(words, cwd=self.folder, env=self._environment, stdout=log, stderr=log)

    def kill(self, *services: str) -> None:
        """Kill these, or all."""
        for name in services or tuple(self._services):
            service = self._services.pop(name)
            service.kill()
            service.wait()

    def stop(self) -> list[int]:
        services = list(self._services.values())
        for service in services:
            service.terminate()
        return [service.wait(30) for service in services]

    def log(self) -> str:
        return "\n".join(path.read_text() for path in self.folder.glob("*.log"))

    async def _answers(self) -> bool:
        assert all(service.poll() is None for service in self._services.values()), self.log()
        try:
            async with httpx.AsyncClient() as client:
                return (await client.get(f"{self.url}/openapi.json")).status_code == 200
        except httpx.TransportError:
            return False

    def _words(self, command: str) -> Sequence[str]:
        assert command in self._commands
        program, *words = shlex.split(command)
        if program == "python":
            return [sys.executable, *words]
        return [sys.executable, "-m", "outboxkit.cli" if program == "outboxkit" else program, *words]


def _commands(readme: Path) -> Sequence[str]:
    lines = re.findall(r"^\$ (.*)$", readme.read_text(), re.MULTILINE)
    return [command.removesuffix("&").strip() for line in lines for command in line.split(" && ")]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _sqlalchemy(url: str) -> str:
    return url.replace("postgresql://", "postgresql+asyncpg://")


@pytest.fixture
async def databases(postgres_server_url: str) -> AsyncIterator[tuple[str, str]]:
    shop, billing = await new_database(postgres_server_url), await new_database(postgres_server_url)
    yield shop, billing
    for url in (shop, billing):
        await drop_database(url, postgres_server_url)


async def rows(url: str, query: str) -> list[Any]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


async def test_each_order_gets_one_invoice_whoever_is_killed(
    tmp_path: Path, databases: tuple[str, str], redis_url: str
) -> None:
    shop, billing = databases
    urls = {"SHOP_DATABASE": _sqlalchemy(shop), "BILLING_DATABASE": _sqlalchemy(billing), "ORDERS_BROKER": redis_url}
    orders = Orders(tmp_path / "orders", urls)
    await anyio.to_thread.run_sync(orders.create_tables)
    try:
        await orders.start("shop", "billing")
        async with httpx.AsyncClient(base_url=orders.url, timeout=30.0) as client:
            placed: list[str] = []
            for number in range(ORDERS):
                answer = await client.post("/orders", json={"customer": f"Customer {number}", "cents": 100 + number})
                assert answer.status_code == 201, answer.text
                placed.append(answer.json()["id"])
                if number == ORDERS // 2:
                    orders.kill("billing")
            orders.kill("shop")
            await orders.start("shop", "billing")
            bad_bodies: list[dict[str, object]] = [
                {"customer": "", "cents": 1},
                {"customer": "x", "cents": 0},
                {"customer": "a\u0000b", "cents": 5},
                {},
            ]
            for bad in bad_bodies:
                assert (await client.post("/orders", json=bad)).status_code == 422
            assert (await client.get("/orders/00000000-0000-0000-0000-000000000000")).status_code == 404

            async def invoices() -> list[Any]:
                return [(await client.get(f"/orders/{id}")).json()["invoice"] for id in placed]

            numbers = await until(invoices, lambda numbers: None not in numbers, seconds=60.0)
        issued = await rows(billing, "SELECT order_id, number FROM invoices")
        assert sorted(issued) == sorted(zip(placed, numbers, strict=True)), "one invoice for each order, and the shop knows it"
        assert all(code in (0, -15) for code in orders.stop()), orders.log()
    finally:
        orders.kill()
    assert "Traceback" not in orders.log()
