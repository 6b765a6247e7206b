"""A sample of the crash points: nothing lost, invented, done twice or out of order; the whole is `python -m tests.crash`."""

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import redis

from outboxkit.testing.redis_server import RedisServer
from tests.crash.faults import FAULTS
from tests.crash.matrix import Found, find, run
from tests.crash.outside import BrokerKind, Place, Setting, StoreKind
from tests.crash.protocol import Request
from tests.crash.sites import ROOT, all_sites
from tests.crash.tracing import Point
from tests.crash.ward import Ward

POINTS: dict[tuple[StoreKind, BrokerKind], int] = {("sqlite", "embedded"): 505, ("postgres", "redis"): 720}
"""How many awaits the scenario comes by at least; some more it does now and then. A drop is explained in the same change."""
CASES: dict[tuple[StoreKind, BrokerKind], int] = {("sqlite", "embedded"): 8, ("postgres", "redis"): 3}
"""Of each fault."""


@pytest.fixture(scope="module", params=POINTS, ids="-".join)
def kind(request: pytest.FixtureRequest) -> tuple[StoreKind, BrokerKind]:
    kind: tuple[StoreKind, BrokerKind] = request.param
    if kind[0] == "postgres" and not os.environ.get("OUTBOXKIT_TEST_POSTGRES_URL"):
        request.getfixturevalue("postgres_binaries")
    if kind[1] == "redis":
        request.getfixturevalue("redis_binary")
    return kind


@pytest.fixture(scope="module")
def ward(kind: tuple[StoreKind, BrokerKind]) -> Iterator[Ward]:
    with Ward(*kind) as ward:
        yield ward


@pytest.fixture(scope="module")
def found(ward: Ward, kind: tuple[StoreKind, BrokerKind]) -> Found:
    return find(ward, networked=kind != ("sqlite", "embedded"))


def test_the_scenario_comes_by_as_many_awaits_as_ever(found: Found, kind: tuple[StoreKind, BrokerKind]) -> None:
    assert len(found.sites) >= POINTS[kind], [str(site) for site in found.unmet()]
    assert set(found.sites) <= all_sites().keys()


def test_a_sample_of_faults_breaks_no_promise(ward: Ward, found: Found, kind: tuple[StoreKind, BrokerKind]) -> None:
    every = found.cases(0)
    cases = [
        case for fault in FAULTS for case in Random(0).sample([case for case in every if case.fault == fault], CASES[kind])
    ]
    reports = list(run(ward, found, cases))
    assert [f"{report.request}: {report.violations}\n{report.log}" for report in reports if report.violations] == []
    assert sum(report.struck for report in reports) > 0.8 * len(reports)


MUTANTS = {
    "no inbox": Request("consume", "acking.Acks._send#1@1", "killed before", "no inbox", settle_seconds=10.0),
    "progress before append": Request(
        "consume", "relay.Relay._append_and_read_on#1@1", "killed before", "progress before append", settle_seconds=10.0
    ),
    "no order": Request("retry", "acking.Acks._send#1@2", "killed after", "no order", settle_seconds=10.0),
}
BROKEN = {"no inbox": "twice", "progress before append": "not noted", "no order": "out of order"}


def test_mutants_are_found(ward: Ward) -> None:
    reports = list(ward.run(list(MUTANTS.values())))
    for report in reports:
        assert report.struck
        assert any(BROKEN[report.request.mutant] in violation for violation in report.violations), report


def test_every_await_of_the_library_is_a_site() -> None:
    sites = all_sites()
    source = (ROOT / "outboxkit/relay.py").read_text()
    of_relay = [site for site in sites.values() if site.path == "outboxkit/relay.py"]
    assert sum(site.text.startswith("await ") for site in of_relay) == source.count("await ")
    assert sum(site.name.endswith("+enter") for site in of_relay) == source.count("async with ")


def test_a_point_is_read_as_it_is_written() -> None:
    for point in (Point("relay.Relay._copy#1", 3), Point("lease.Lease.turn#1+enter", 1)):
        assert Point.of(str(point)) == point
    assert Point.of("relay.Relay._copy#1") == ("relay.Relay._copy#1", 1)


def test_cutting_the_connections_of_a_run_leaves_those_of_others(redis_binary: str, tmp_path: Path) -> None:
    driver: Any = redis.Redis  # its annotations are incomplete
    with RedisServer(redis_binary, options=("--databases", "3")) as server:
        own, others = (f"{server.url}/{database}" for database in (1, 2))
        with driver.from_url(own) as cut, driver.from_url(others) as spared:
            before = cut.client_id(), spared.client_id()
            Place(Setting("sqlite", "redis", str(tmp_path), redis_url=own), "cut").cut_connections()
            assert cut.client_id() != before[0]
            assert spared.client_id() == before[1]
