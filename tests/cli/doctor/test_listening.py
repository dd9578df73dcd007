"""The check of an address to listen on."""

import os
import socket
import time

import pytest
from helpers import WAIT

from relay.addresses.i2p import I2PRouter
from relay.addresses.parse import parse_listen
from relay.addresses.values import TCPAddress
from relay.cli.doctor.listening import check_listen
from relay.cli.doctor.report import Check, Status


class Probe:
    """The probe of the hops to a listener, which the test decides on."""

    def __init__(self, checks=(), bound=None):
        self.checks, self.bound = [*checks], bound
        self.route = None
        self.calls = []
        self.is_closed = False

    def __call__(self, route):
        self.route = route
        return self

    def test(self, target, deadline):
        assert target is None and deadline > time.monotonic()
        return self.checks

    def published(self, address, deadline):
        self.calls.append(address)
        return Check("published", address, Status.OK, "found")

    def other_relay(self, key, deadline):
        self.calls.append(("other relay", key.b32))
        return Check("standby", key.b32, Status.OK, "agrees")

    def prove(self, place, deadline):
        self.calls.append(place.router)
        return Check("published", "a new destination", Status.OK, "arrived")

    def listening(self, place, deadline):
        if isinstance(self.bound, Exception):
            raise self.bound
        return self

    def __enter__(self):
        return self.bound, "127.0.0.1"

    def __exit__(self, *_):
        self.calls.append("stopped")

    def close(self):
        self.is_closed = True


def check(text, probe=None, *, before=(), open_remote=False):
    found = check_listen(parse_listen(text), before, probe or Probe(), time.monotonic() + WAIT, open_remote)
    assert probe is None or probe.is_closed
    return found


def only(text, **options):
    (found,) = check(text, **options)
    assert found.step == "listen"
    return found


@pytest.fixture(autouse=True)
def process_of_relay(monkeypatch):
    """The process id of the relay that has an address in use: none, or what the test appends. No other one counts."""
    found = []
    monkeypatch.setattr("relay.cli.doctor.listening.process_at", lambda address: found[-1] if found else None)
    return found


def test_an_address_of_the_running_relay(listener, tmp_path, process_of_relay):
    process_of_relay.append(7)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"{tmp_path}/s")
        made.listen()
        for address in (":{1}".format(*listener.getsockname()), f"unix://{tmp_path}/s"):
            found = only(address)
            assert (found.status, found.text) == (Status.OK, "the running relay (process 7) listens here")


def test_a_port(listener):
    assert only(":0").status is Status.OK
    found = only(f":{listener.getsockname()[1]}")
    assert (found.status, found.text) == (Status.WARNING, "Address already in use")
    assert "a relay without a control socket" in found.advice
    found = only("192.0.2.1:80")
    assert (found.status, "no such address" in found.advice) == (Status.FAILED, True)
    for kind in ("tls", "resume:tls"):
        found = only(f"{kind}://127.0.0.1:{listener.getsockname()[1]}?cert=a&key=b&client_ca=c")
        assert found.status is Status.WARNING


def test_a_port_of_the_administrator(monkeypatch):
    def bind(self, address):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("relay.cli.doctor.listening.socket.socket.bind", bind)
    found = only(":80")
    assert (found.status, "CAP_NET_BIND_SERVICE" in found.advice) == (Status.FAILED, True)


def test_a_unix_socket(tmp_path):
    path = f"unix://{tmp_path}/s"
    assert only(path).text == "free"
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"{tmp_path}/s")
        made.listen()
        assert only(path).status is Status.WARNING
    assert (only(path).status, "relay replaces it" in only(path).text) == (Status.OK, True)
    found = only(f"unix://{tmp_path}/none/s")
    assert (found.status, found.text) == (Status.FAILED, f"there is no directory {tmp_path}/none")


def test_a_directory_without_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    found = only(f"unix://{tmp_path}/s")
    assert (found.status, "no permission" in found.text) == (Status.FAILED, True)


FAILED = Check("login", "ssh://server", Status.FAILED, "no")
LOGGED_IN = Check("login", "ssh://server", Status.OK, "by key")


@pytest.mark.parametrize("text", ["ssh://server?listen=:80", "i2p:"])
def test_hops_that_fail_are_all(text):
    for open_remote in (False, True):
        assert check(text, Probe([FAILED]), open_remote=open_remote) == [FAILED]


@pytest.mark.parametrize(("listen", "is_outside"), [("127.0.0.1:80", False), ("0.0.0.0:80", True), ("/run/s", False)])
def test_a_server_is_not_opened_without_a_request(listen, is_outside):
    probe = Probe([LOGGED_IN])
    hops = (I2PRouter(),)
    login, found = check(f"ssh://server?listen={listen}", probe, before=hops)
    assert (login, found.status, found.step) == (LOGGED_IN, Status.SKIPPED, "remote listen")
    assert ("GatewayPorts" in found.text) is is_outside
    assert [*map(str, probe.route)] == [str(hops[0]), "ssh://server"]


def test_a_server_is_opened_on_request(listener):
    bound = TCPAddress("127.0.0.1", listener.getsockname()[1])
    probe = Probe([], bound)
    (found,) = check("ssh://server?listen=127.0.0.1:80", probe, open_remote=True)
    assert (found.status, f"at port {bound.port}" in found.text, probe.calls) == (Status.OK, True, ["stopped"])
    found = check("ssh://server?listen=0.0.0.0:80", Probe([], bound), open_remote=True)
    assert [(each.step, each.status) for each in found] == [("remote listen", Status.OK), ("gateway ports", Status.OK)]


def test_a_destination_is_tested_with_another_one(tmp_path):
    """A session with the same keys would end that of a relay which runs."""
    probe = Probe([LOGGED_IN])
    found = check(f"i2p:?keys={tmp_path}/none.dat", probe)
    assert (probe.route[-1].keys, probe.route[-1].session) == (None, "")
    assert [(each.step, each.status) for each in found[1:]] == [("key file", Status.SKIPPED)]
    assert check("i2p:", Probe([LOGGED_IN])) == [LOGGED_IN]


def test_a_key_that_a_standby_lacks_is_a_failure(tmp_path):
    (found,) = check(f"i2p:?keys={tmp_path}/none.dat&standby=yes", Probe([]))
    assert (found.step, found.status) == ("key file", Status.FAILED)
    assert found.advice.startswith("copy it from the other machine")


def test_of_a_destination_with_a_standby_the_relay_that_serves_it_is_asked(tmp_path):
    from relay.addresses.destinations import PrivateKey
    from relay.transports.i2p import key_file

    key_file.write(tmp_path / "site.dat", key := PrivateKey.generate())
    probe = Probe([])
    found = check(f"i2p:?keys={tmp_path}/site.dat&standby=yes", probe)
    assert [each.step for each in found] == ["published", "standby"]
    assert probe.calls == [key.b32, ("other relay", key.b32)]
