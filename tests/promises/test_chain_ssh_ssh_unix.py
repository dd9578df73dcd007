"""Through two real servers to a Unix socket behind the second: either ends, and all of it comes back by itself."""

import os

import pytest
from helpers import Thread, ended, ending, exchange, receive_all, receive_exactly, send_and_end
from sshd import FarEnd

DATA = os.urandom(5 << 20)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A short back-off: how long it is has its own tests."""
    monkeypatch.setattr("relay.carriers.retry._BACKOFF", (0.05, 1.0))
    monkeypatch.setattr("relay.carriers.retry._MAX_BACKOFF_WITH_WAITERS", 0.1)


@pytest.fixture
def two(backend, make_sshd):
    return [FarEnd("sshd", backend, make_sshd()) for _ in range(2)]


@pytest.fixture
def rig(two, over_ssh):
    return over_ssh([one.url for one in two], way_out="unix")


def test_every_byte_arrives(two, rig):
    client, far = rig.connect()
    sending, answering = Thread(send_and_end, client, DATA), Thread(send_and_end, far, DATA[::-1])
    back = Thread(receive_all, client)
    assert receive_all(far) == DATA
    assert back.result() == DATA[::-1]
    sending.result()
    answering.result()
    assert ended(rig.tunnel) == ["done"]
    assert [one.logins for one in two] == [1, 1]
    (record,) = rig.tunnel.recent()
    hops = [hop for hop, _ in record.hop_times]
    assert hops[-1] == "3:target" and set(hops[:-1]) <= {"2:ssh"}, "the wait for the second server, and the stream"
    assert two[1].url.startswith(f"{record.carrier}?") and record.attempts == 1
    times = rig.tunnel.metrics().hop_times
    assert sum(times["3:target"].counts) == 1 and set(times) <= {"2:ssh", "3:target"}, "no step that the route lacks"


def test_nothing_of_the_users_shell_is_read(rig, tmp_path, monkeypatch):
    """A command that has a socket as its standard input is one of rshd's to bash, which reads ~/.bashrc then."""
    (tmp_path / ".bashrc").write_text(f"touch {tmp_path}/read; echo noise; sleep 60\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", "/bin/bash")
    monkeypatch.delenv("SHLVL", raising=False)
    exchange(*rig.connect())
    assert not (tmp_path / "read").exists()


@pytest.mark.parametrize("lost", [0, 1], ids=["first", "second"])
def test_one_is_lost(two, rig, lost):
    pairs = [rig.connect() for _ in range(3)]
    for client, far in pairs:
        exchange(client, far)
    two[lost].down()
    assert [ending(client) for client, _ in pairs] == ["reset"] * 3
    assert ended(rig.tunnel, 3) == ["carrier_lost"] * 3
    rig.wait_for_loss()
    waiting = rig.client()
    waiting.sendall(b"I wait")
    two[lost].up()
    far = rig.accept()
    assert receive_exactly(far, 6) == b"I wait"
    exchange(waiting, far)
    exchange(*rig.connect())


def test_both_are_lost_and_the_second_comes_first(two, rig):
    client, far = rig.connect()
    exchange(client, far)
    for one in two:
        one.down()
    assert ending(client) == "reset"
    for one in reversed(two):
        one.up()
    exchange(*rig.connect())
