"""A process that is gone for certain is told from all others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from outboxkit import identity
from outboxkit.identity import is_gone, member_name

TELL = "from outboxkit.identity import member_name; print(member_name('host'), flush=True); input()"


def test_no_two_members_have_one_name() -> None:
    assert member_name("host") != member_name("host")
    assert member_name("host").startswith("host/")


def test_a_process_that_was_killed_is_gone_and_one_that_runs_is_not() -> None:
    assert not is_gone(member_name("host"))
    with subprocess.Popen(
        [sys.executable, "-c", TELL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        assert not is_gone(name)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_gone(name), "although nobody has asked how it ended"
    assert is_gone(name)


def test_an_id_that_was_given_again_is_another_process() -> None:
    reader, place, process, started, run = member_name("host").split("/")
    assert is_gone("/".join((reader, place, process, str(int(started) - 1), run)))


def test_of_other_places_nothing_is_known() -> None:
    reader, _, process, _, run = member_name("host").split("/")
    assert not is_gone("/".join((reader, "0" * 12, process, "1", run)))


@pytest.mark.parametrize("name", ["", "host", "host/1234abcd", "/////", "a/b/c/d/e", "host/x/y/z/1/2"])
def test_a_name_that_tells_nothing_is_not_gone(name: str) -> None:
    assert not is_gone(name)


def test_where_the_system_does_not_tell_nobody_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = member_name("host")
    monkeypatch.setattr(identity, "_PROCESSES", tmp_path)
    assert not is_gone(here)
    assert not is_gone(member_name("host"))
    assert member_name("host").count("/") == 1


def test_a_process_that_is_hidden_is_gone_only_when_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TELL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        hidden = tmp_path / "hidepid"
        (hidden / "sys/kernel/random").mkdir(parents=True)
        (hidden / "sys/kernel/random/boot_id").symlink_to("/proc/sys/kernel/random/boot_id")
        (hidden / "self/ns").mkdir(parents=True)
        (hidden / "self/ns/pid").symlink_to(Path("/proc/self/ns/pid").readlink())
        monkeypatch.setattr(identity, "_PROCESSES", hidden)
        assert not is_gone(name)
        process.kill()
    assert is_gone(name)
