"""The datagrams to a service manager, under a notify socket of the test."""

import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import WAIT

from relay.daemon import service_manager
from relay.daemon.service_manager import Notifier, is_stored_name, notifier, stored_name


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A notify socket, and its address as the environment has it."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@relay-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(address.replace("@", "\0"))
        made.settimeout(WAIT)
        yield made, address


def fields(manager):
    return dict(line.split("=", 1) for line in manager.recv(4096).decode().splitlines())


def test_each_notification_has_its_fields(manager):
    heard, address = manager
    with Notifier(address) as told:
        told.ready("2 of 2 tunnels listen")
        assert fields(heard) == {"READY": "1", "STATUS": "2 of 2 tunnels listen"}
        told.status("1 of 2 tunnels listen")
        assert fields(heard) == {"STATUS": "1 of 2 tunnels listen"}
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        told.reloading()
        found = fields(heard)
        assert found.keys() == {"RELOADING", "MONOTONIC_USEC"}
        assert before <= int(found["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        told.stopping("closing")
        assert fields(heard) == {"STOPPING": "1", "STATUS": "closing"}
        told.extend(2.5)
        assert fields(heard) == {"EXTEND_TIMEOUT_USEC": "2500000"}
        told.alive()
        assert fields(heard) == {"WATCHDOG": "1"}
        told.forget("relay-listen-db")
        assert fields(heard) == {"FDSTOREREMOVE": "1", "FDNAME": "relay-listen-db"}


def test_a_stored_socket_is_the_one_that_listens(manager):
    heard, address = manager
    with Notifier(address) as told, socket.create_server(("127.0.0.1", 0)) as listening:
        told.store("relay-listen-db", listening)
        data, descriptors, _, _ = socket.recv_fds(heard, 4096, 8)
        assert data.decode().splitlines() == ["FDSTORE=1", "FDNAME=relay-listen-db"]
        with socket.socket(fileno=descriptors[0]) as received:
            assert received.getsockname() == listening.getsockname()


def test_a_service_manager_that_is_gone_is_only_logged(tmp_path, caplog):
    with Notifier(str(tmp_path / "gone")) as told:
        told.ready("fine")
    assert "the service manager did not take READY=1" in caplog.text


@pytest.mark.parametrize(
    ("more", "watchdog", "stores"),
    [
        ({}, None, 0),
        ({"WATCHDOG_USEC": "30000000"}, 30.0, 0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0, 0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None, 0),
        ({"WATCHDOG_USEC": "none", "FDSTORE": "-1"}, None, 0),
        ({"FDSTORE": "64"}, None, 64),
    ],
)
def test_the_environment_is_read_and_cleared(more, watchdog, stores):
    environment = {"NOTIFY_SOCKET": "@relay", "HOME": "/root", **more}
    with notifier(environment) as made:
        assert (made.watchdog, made.stores) == (watchdog, stores)
    assert environment == {"HOME": "/root"}


@pytest.mark.parametrize("address", ["", "@", "vsock:2:1234", "relative"])
def test_an_address_of_another_kind_is_no_service_manager(address):
    assert notifier({"NOTIFY_SOCKET": address}) is None


def test_names_of_stored_sockets_are_known_again():
    assert stored_name("db") == "relay-listen-db"
    assert is_stored_name(stored_name("db")) and not is_stored_name("db")


def test_a_barrier_ends_when_the_service_manager_has_come_to_it(manager):
    heard, address = manager
    with Notifier(address) as told, ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(told.barrier)
        data, descriptors, _, _ = socket.recv_fds(heard, 4096, 8)
        assert data == b"BARRIER=1" and not waiting.done()
        os.close(*descriptors)
        waiting.result(WAIT)


def test_a_barrier_does_not_wait_for_ever(manager, monkeypatch, caplog):
    monkeypatch.setattr(service_manager, "_TIMEOUT", 0.01)
    heard, address = manager
    with Notifier(address) as told:
        told.barrier()
        _, descriptors, _, _ = socket.recv_fds(heard, 4096, 8)
        os.close(*descriptors)
    assert "the service manager did not answer within 0.01 s" in caplog.text
