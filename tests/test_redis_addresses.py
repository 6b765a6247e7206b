"""Broker URLs of several hosts: what they may say, what they are shown as, and never a password."""

import re
from pathlib import Path

import pytest

from outboxkit.errors import ConfigurationError
from outboxkit_redis import RedisBroker
from outboxkit_redis.address import Place, parse_url


def test_a_cluster_url_names_some_of_its_nodes() -> None:
    address = parse_url("redis+cluster://user:p%40ss@one:7000,two,[::1]:7002?prefix=mine&client_name=us")
    assert address.places == (Place("one", 7000), Place("two", 6379), Place("::1", 7002))
    assert (address.kind, address.prefix) == ("cluster", "mine")
    assert str(address) == "redis+cluster://one:7000,two:6379,[::1]:7002"
    assert address.driver_url(Place("::1", 7002)) == "redis://user:p%40ss@[::1]:7002/?client_name=us"
    assert "ss@" not in repr(address)


def test_a_sentinel_url_names_the_service_and_the_database() -> None:
    address = parse_url(
        "rediss+sentinel://user:secret@one,two:26380/orders/3?sentinel_user=us&sentinel_password=hid@den&ssl_ca_path=/ca"
    )
    assert address.places == (Place("one", 26379), Place("two", 26380))
    assert (address.kind, address.service) == ("sentinel", "orders")
    assert str(address) == "rediss+sentinel://one:26379,two:26380/orders/3"
    assert address.driver_url(Place("three", 1)) == "rediss://user:secret@three:1/3?ssl_ca_path=%2Fca"
    assert address.sentinel_url(Place("one", 2)) == "rediss://us:hid%40den@one:2/?ssl_ca_path=%2Fca"
    assert "secret" not in repr(address)
    assert "hid" not in repr(address)


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("redis://:pa55word@one,two", "redis+cluster://"),
        ("redis+cluster://:pa55word@one,two:port", "cannot be read"),
        ("redis+cluster://:pa55word@one,,two", "cannot be read"),
        ("redis+cluster://:pa55word@one,", "cannot be read"),
        ("redis+cluster://:pa55word@one,:pa55word@two", "cannot be read"),
        ("redis+cluster://:pa55#word@one,two", "cannot be read"),
        ("redis+cluster://:1/pa55word@one,two", "percent-encode"),
        ("redis+cluster://:1?pa55word@one,two", "encoded as %3F"),
        ("redis+cluster://:pa55word@one/1", "one database only"),
        ("redis+cluster://:pa55word@one?db=1", "unknown option 'db'"),
        ("redis+cluster://:pa55word@one?sentinel_password=pa55", "unknown option 'sentinel_password'"),
        ("redis+cluster://:pa55word@one?ssl_ca_certs=/ca.pem", "unknown option 'ssl_ca_certs'"),
        ("redis+cluster://:pa55word@one?prefix=a b", "prefix 'a b'"),
        ("rediss+cluster://:pa55word@one?ssl_cert_reqs=maybe", "maybe"),
        ("redis+sentinel://:pa55word@one,two", "name the service"),
        ("redis+sentinel://:pa55word@one,two/", "name the service"),
        ("redis+sentinel://:pa55word@one/orders/main", "name the service"),
        ("redis+sentinel://:1/pa55word@one/orders", "percent-encode"),
        ("redis+sentinel://:1#pa55word@one/orders", "percent-encode"),
        ("redis+sentinel://:pa55word@one/orders?retry_on_timeout=yes", "unknown option 'retry_on_timeout'"),
        ("redis+sentinels://:pa55word@one/orders", "has to start with one of redis://"),
        ("rediss+://:pa55word@one", "has to start with one of redis://"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(url: str, named: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RedisBroker(url)
    assert named in str(caught.value)
    assert "pa55" not in str(caught.value)


def test_the_urls_that_the_documentation_shows_can_be_used() -> None:
    page = (Path(__file__).parents[1] / "docs" / "redis.md").read_text(encoding="utf-8")
    shown = re.findall(r'broker="([^"]+)"', page)
    assert [parse_url(url).kind for url in shown] == ["cluster", "sentinel"]
