"""Through a SOCKS5, an HTTP and another SOCKS5 proxy, all of them real: every byte arrives, and errors name the hop."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from command_rig import commands
from helpers import WAIT, Server, receive_exactly, refusing, wait_until
from proxy_world import PASSWORD, USER, RealProxy, dante, members, microsocks, tinyproxy
from sshd import FarEnd

import relay
from relay.errors import AuthenticationError, ConnectError

SIZE = 5 << 20  # bytes each way
SECRET = "secret"  # tinyproxy's


class Chain:
    """The three proxies, started anew for each test that breaks one.

    :param folder: where they may put their files.
    """

    def __init__(self, folder: Path) -> None:
        self.proxies: Sequence[RealProxy] = (
            dante(folder),
            tinyproxy(folder, (USER, SECRET)),
            microsocks(folder, (USER, PASSWORD)),
        )
        self._file = folder / "password"
        self._file.touch(0o600)
        self._file.write_text(f"{PASSWORD}\n")

    def start(self) -> None:
        """Start them all."""
        for one in self.proxies:
            one.start()

    def via(self, **secrets: str) -> list[str]:
        """The hops; a secret is in the environment, the other in a file."""
        first, second, third = (one.address.replace("//", f"//{USER}@" if one.login else "//") for one in self.proxies)
        environment = secrets.get("environment", "RELAY_TEST_SECRET")
        return [first, f"{second}?password_env={environment}", f"{third}?password_file={self._file}"]

    def stop(self) -> None:
        """Kill them all."""
        for one in self.proxies:
            one.stop()


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, spawner_thread: None) -> Iterator[Chain]:
    made = Chain(tmp_path_factory.mktemp("proxies"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_TEST_SECRET", SECRET)
    monkeypatch.setenv("RELAY_TEST_WRONG", "wrong")


def hashed(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def serve_http(connection: Any) -> None:
    """Answer a PUT with as many other bytes, and hashes of both in the head."""
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(65536)
    head, _, body = head.partition(b"\r\n\r\n")
    if b"100-continue" in head:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    found = re.search(rb"(?i)content-length: (\d+)", head)
    assert found is not None
    body += receive_exactly(connection, int(found[1]) - len(body))
    data = os.urandom(SIZE)
    said = b"HTTP/1.1 200 OK\r\nX-Came: %s\r\nX-Sent: %s\r\nContent-Length: %d\r\n\r\n"
    connection.sendall(said % (hashed(body), hashed(data), len(data)) + data)
    connection.recv(1)


def place_of(address: tuple[str, int]) -> str:
    return "{}:{}".format(*address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_curl(chain: Chain, serve: Any, tmp_path: Path, host: str) -> None:
    """Through a tunnel; the name is resolved by the last proxy."""
    server: Server = serve(serve_http)
    data = os.urandom(SIZE)
    (tmp_path / "up").write_bytes(data)
    factory = relay.target(f"{host}:{server.address[1]}", via=chain.via())
    with relay.Tunnel(relay.listen(":0"), factory, timeout=None) as tunnel:
        url = f"http://127.0.0.1:{tunnel.address[1]}/"
        files = ["-T", str(tmp_path / "up"), "-o", str(tmp_path / "down"), "-D", str(tmp_path / "head")]
        subprocess.run(["curl", "-sS", "--noproxy", "*", "-m", "60", *files, url], check=True, timeout=90)
        wait_until(lambda: tunnel.recent())
        assert tunnel.recent()[-1].target == f"{host}:{server.address[1]}"
    head = (tmp_path / "head").read_bytes()
    assert b"X-Came: " + hashed(data) in head
    assert b"X-Sent: " + hashed((tmp_path / "down").read_bytes()) in head


def failure_of(target: str, via: Sequence[str]) -> relay.RelayError:
    with pytest.raises(relay.RelayError) as failed:
        relay.connect(target, via=via, timeout=WAIT)
    text = str(failed.value)
    assert text.isprintable() and SECRET not in text and PASSWORD not in text
    return failed.value


def test_errors_belong_to_whom_they_belong_to(chain: Chain, serve: Any) -> None:
    with refusing() as address:
        error = failure_of(place_of(address), chain.via())
        third = f"socks5://{USER}@127.0.0.1:{chain.proxies[2].port}"
        assert isinstance(error, ConnectError) and error.reason == "refused"
        assert str(error).startswith(f"{place_of(address)}: {third} says that it refused the connection")
    error = failure_of("127.0.0.1:9", chain.via(environment="RELAY_TEST_WRONG"))
    second = f"http://{USER}@127.0.0.1:{chain.proxies[1].port}"
    assert isinstance(error, AuthenticationError)
    assert str(error).startswith(f"hop 2 of 3 ({second}): it does not accept the user and the password")
    via = relay.target("127.0.0.1:9", via=chain.via(environment="RELAY_TEST_WRONG"))
    with pytest.raises(AuthenticationError, match=r"hop 2 of 3 \("):
        via.ready(WAIT)  # type: ignore[union-attr]
    with refusing() as address:
        hops = [*chain.via()[:2], f"socks5://{place_of(address)}"]
        text = str(failure_of("127.0.0.1:9", hops))
    assert text.startswith(f"hop 3 of 3 ({hops[2]}): {place_of(address)}: {second} says that it cannot be reached (500")


@pytest.mark.parametrize("dead", [0, 1, 2])
def test_a_proxy_that_is_down_is_named_and_comes_back(
    tmp_path: Path, spawner_thread: None, serve: Any, dead: int
) -> None:
    server: Server = serve(lambda connection: connection.sendall(connection.recv(4)))
    chain = Chain(tmp_path)
    try:
        chain.start()
        factory: Any = relay.target(place_of(server.address), via=chain.via())
        for _ in range(2):
            factory.ready(WAIT)
            with factory(deadline=time.monotonic() + WAIT) as stream:
                stream.socket.settimeout(WAIT)
                stream.socket.sendall(b"ping")
                assert receive_exactly(stream.socket, 4) == b"ping"
            chain.proxies[dead].kill()
            with pytest.raises(ConnectError) as failed:
                factory(deadline=time.monotonic() + WAIT)
            assert str(failed.value).startswith(f"hop {dead + 1} of 3 (")
            assert f":{chain.proxies[dead].port}" in str(failed.value)
            chain.proxies[dead].start()
    finally:
        chain.stop()


def test_a_connection_over_a_proxy_comes_back_with_it(backend: str, tmp_path: Path, sshd: Any, serve: Any) -> None:
    """Also through the proxy: names and errors are those of the hops."""
    server: Server = serve(lambda connection: connection.sendall(connection.recv(4)))
    proxy = microsocks(tmp_path, (USER, SECRET)).start()
    try:
        hop = proxy.address.replace("//", f"//{USER}@")
        via = [f"{hop}?password_env=RELAY_TEST_SECRET", FarEnd("sshd", backend, sshd).url]
        factory: Any = relay.target(place_of(server.address), via=via)
        factory.ready(WAIT)
        proxy.kill()
        wait_until(lambda: factory.state != "up")
        with pytest.raises(ConnectError) as failed:
            factory()
        assert str(failed.value).startswith(f"hop 1 of 2 ({hop}): ") and failed.value.reason == "refused"
        proxy.start()
        with factory(deadline=time.monotonic() + WAIT * 3) as stream:
            stream.socket.settimeout(WAIT)
            stream.socket.sendall(b"ping")
            assert receive_exactly(stream.socket, 4) == b"ping"
        factory.close()
    finally:
        proxy.stop()


def test_the_command_tells_what_is_wrong_before_the_first_client_comes(chain: Chain, spawner_thread: None) -> None:
    with commands() as command:
        wrong = [f"--via={hop}" for hop in chain.via(environment="RELAY_TEST_WRONG")]
        status, said = command(":0", "127.0.0.1:9", *wrong).wait()
        assert status == 1
        assert re.fullmatch(r"relay: hop 2 of 3 \(http://me@\S+\): it does not accept the user and the pass.*\n", said)
        with refusing() as address:
            patient = command(":0", "127.0.0.1:9", f"--via={chain.via()[0]}", f"--via=socks5://{place_of(address)}")
            line = patient.hear("refused the connection")
            assert f"WARNING hop 2 of 2 (socks5://{place_of(address)}): " in line
            assert patient.end()[0] == 0


def test_giving_up_at_any_moment_leaves_nothing(chain: Chain, serve: Any) -> None:
    """Each time a little later; the leak check after the test looks for what is left."""
    server: Server = serve(lambda connection: connection.recv(1))
    factory: Any = relay.target(place_of(server.address), via=chain.via())
    made = []

    def done(outcome: relay.Stream | OSError) -> None:
        assert isinstance(outcome, relay.Stream), outcome
        made.append(outcome.target)
        outcome.close()

    for number in range(100):
        give_up = factory.dial(time.monotonic() + WAIT, done)
        threading.Event().wait(number / 20_000)
        give_up()
    wait_until(lambda: members() == 0)
    assert len(made) < 100
    factory.close()
