"""The real I2P routers of the tests."""

import os
import signal
import socket

import i2p_world
import i2pd
import pytest
from helpers import WAIT, wait_until

from relay.addresses.destinations import PrivateKey

HELLO = b"HELLO VERSION MIN=3.0 MAX=3.3\n"


@pytest.fixture(scope="module")
def network(tmp_path_factory, spawner_thread):
    if i2pd.PROGRAM is None:
        pytest.skip("there is no i2pd (Debian: i2pd)")
    try:
        made = i2pd.Network(tmp_path_factory.mktemp("i2p"), 2)
    except i2pd.Unavailable as error:
        pytest.skip(str(error))
    with made:
        yield made


@pytest.fixture
def router(network):
    return network.router(1)


class SAM:
    """A socket of a bridge that has said HELLO."""

    def __init__(self, address, connected=None):
        self.socket = connected or socket.create_connection(address)
        self.socket.settimeout(WAIT)
        self.lines = self.socket.makefile()
        assert self.ask(HELLO.decode().rstrip()).startswith("HELLO REPLY RESULT=OK")

    def ask(self, line):
        self.socket.sendall(line.encode() + b"\n")
        return self.lines.readline()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.lines.close()
        self.socket.close()


def test_it_makes_no_keys_in_a_start_that_a_kill_may_end(router):
    """Killed while it makes those of a destination, it would take the empty file for keys of zeros."""
    router.kill()
    router.configure(i2pd.server_tunnel("web", router.folder / "web.dat", 20000))
    keys = router.folder / "destinations"
    router.launch(tunnels=False)
    router.wait_until_ready()
    assert list(keys.glob("*")) == []
    router.restart()
    assert {file.stat().st_size for file in keys.glob("*")} == {512}


def test_one_that_cannot_start_shows_its_log(router):
    configuration = router.folder / "i2pd.conf"
    good = configuration.read_text()
    router.kill()
    configuration.write_text("nonsense")
    with pytest.raises(AssertionError, match="(?s)i2pd has ended:.*nonsense"):
        router.start()
    router.kill()
    configuration.write_text(good)
    router.start()


def test_a_network_is_restored_after_a_test(network, router):
    router.kill()
    network.router(2).freeze()
    network.restore()
    for each in network.routers:
        with SAM(each.sam):
            pass


def test_a_crash_is_told(network, router):
    os.kill(router.pid, signal.SIGSEGV)
    wait_until(lambda: router.crashed)
    with pytest.raises(AssertionError, match="(?s)i2pd has crashed: router-1, .*starting.*\nended by SIGSEGV"):
        network.restore()
    with SAM(router.sam):
        pass


def test_a_ready_destination_is_a_session_at_once(i2p_routers):
    private = PrivateKey.from_bytes(i2p_routers.server_keys().read_bytes())
    with SAM(i2p_world.address_of(i2p_routers.server)) as client:
        client.socket.settimeout(15)  # else it takes 20
        assert "RESULT=OK" in client.ask(f"SESSION CREATE STYLE=STREAM ID=ready DESTINATION={private.base64}")
