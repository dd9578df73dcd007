"""``https://``: out through an HTTP proxy over TLS, and such a proxy for others, with squid, curl and each other."""

import os
import re
import socket
import ssl
import subprocess

import pytest
import trustme
from command_rig import commands, run
from helpers import (
    WAIT,
    Thread,
    echo,
    ended,
    ending,
    exchange,
    receive_all,
    receive_exactly,
    send_all,
    send_and_end,
    wait_until,
)
from proxy_world import LOOPBACK, squid

import relay
from relay.access.options import rules_of
from relay.engine import changes
from relay.errors import AuthenticationError, ConnectError

SIZE = 5 << 20  # bytes each way
USER, PASSWORD = "me", "a secret: pässword"


@pytest.fixture(scope="module")
def proxy(tmp_path_factory, certificates, spawner_thread):
    made = squid(tmp_path_factory.mktemp("squid"), certificates)
    try:
        yield made.start()
    finally:
        made.stop()


def secret(file, text):
    file.touch(0o600)
    file.write_text(text)
    return file


@pytest.fixture
def password(tmp_path):
    return secret(tmp_path / "password", PASSWORD)


def hop(proxy, certificates):
    return f"{proxy.address}?ca={certificates.ca}"


def listening(certificates, more="", user=""):
    return f"https://{user}{LOOPBACK}:0?cert={certificates.cert}&key={certificates.key}{more}"


def through(tunnel, certificates, more="", user=""):
    """The proxy of a tunnel, as a hop."""
    return f"https://{user}{LOOPBACK}:{tunnel.address[1]}?ca={certificates.ca}{more}"


def address_of(server):
    return f"{LOOPBACK}:{server.address[1]}"


def check_repeated(end, send=send_all):
    """Send much, and get all of it back."""
    data = os.urandom(SIZE)
    end.settimeout(3 * WAIT)
    sending = Thread(send, end, data)
    assert receive_exactly(end, SIZE) == data
    sending.result(3 * WAIT)


def mirrored(server, via):
    """Do so by a stream of a target, with an end."""
    with relay.connect(address_of(server), via=via) as end:
        check_repeated(end, send_and_end)
        assert end.recv(1) == b""


def test_out_through_squid(proxy, certificates, serve):
    """Which ends both directions with the first, whatever its configuration says."""
    with relay.connect(address_of(serve(echo)), via=[hop(proxy, certificates)]) as end:
        check_repeated(end)

    def answer_at_the_end(connection):
        connection.sendall(b"%d" % len(receive_all(connection)))

    with relay.connect(address_of(serve(answer_at_the_end)), via=[hop(proxy, certificates)]) as end:
        end.settimeout(3 * WAIT)
        send_and_end(end, b"question")
        assert receive_all(end) == b""


def test_a_tunnel_through_squid_has_the_times_of_its_steps(proxy, certificates, serve):
    factory = relay.target(address_of(serve(echo)), via=[hop(proxy, certificates)])
    with relay.Tunnel(relay.listen(":0"), factory, timeout=None) as tunnel:
        with socket.create_connection(tunnel.address, WAIT) as client:
            client.sendall(b"ping")
            assert receive_exactly(client, 4) == b"ping"
        wait_until(tunnel.recent)
        assert [label for label, _ in tunnel.recent()[0].hop_times] == ["1:https", "2:target"]


def test_the_certificate_of_the_proxy_is_verified(proxy, serve, certificates):
    for more, said in (
        ("", "certificate was not accepted"),
        (f"&servername=elsewhere&ca={certificates.ca}", "servername="),
    ):
        with pytest.raises(ConnectError, match=said) as refused:
            relay.connect(address_of(serve(echo)), via=[f"{proxy.address}?{more[1:]}".rstrip("?")])
        assert refused.value.reason == "denied"
        assert str(refused.value).startswith(f"{proxy.address}: ")
        assert str(refused.value).count("://") == 1


def test_a_target_that_squid_cannot_reach(proxy, certificates):
    with socket.socket() as unused:
        unused.bind((LOOPBACK, 0))
        with pytest.raises(ConnectError, match="says that it cannot be reached") as refused:
            relay.connect(f"{LOOPBACK}:{unused.getsockname()[1]}", via=[hop(proxy, certificates)])
        assert refused.value.reason == "unreachable"


@pytest.fixture
def dynamic(certificates, password):
    """A proxy of relay with a login, and a rule."""
    receive = relay.listen(listening(certificates, f"&password_file={password}", "me@"))
    with relay.Tunnel(receive, relay.dynamic(rules=["127.0.0.9=refuse", "*=direct"]), timeout=None) as tunnel:
        yield tunnel


def curl(tunnel, certificates, url, *more):
    """Ask by ``--proxy https://``."""
    words = ["curl", "-sS", "-m", "60", "-p", "--noproxy", "", "-x", f"https://{LOOPBACK}:{tunnel.address[1]}"]
    words += ["--proxy-cacert", str(certificates.ca), *more, url]
    return subprocess.run(words, capture_output=True, text=True, timeout=90)


def test_curl_through_ours(dynamic, certificates, serve):
    def page(connection):
        while b"\r\n\r\n" not in connection.recv(65536):
            pass
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        connection.recv(1)

    url = f"http://{address_of(serve(page))}/"
    assert curl(dynamic, certificates, url, "--proxy-user", f"{USER}:{PASSWORD}").stdout == "hello"
    assert "407" in curl(dynamic, certificates, url, "--proxy-user", f"{USER}:wrong").stderr
    assert "407" in curl(dynamic, certificates, url).stderr
    refused = curl(dynamic, certificates, "http://127.0.0.9:1/", "--proxy-user", f"{USER}:{PASSWORD}")
    assert "403" in refused.stderr
    assert sorted(ended(dynamic, 4)) == ["denied", "denied", "denied", "done"]


def test_two_of_ours_keep_ends_and_resets(dynamic, certificates, password, relayed, serve):
    via = [through(dynamic, certificates, f"&password_file={password}", "me@")]
    mirrored(serve(echo), via)
    assert ended(dynamic) == ["done"]
    rig = relayed()  # its target is reached through the proxy as well
    host, port = rig.target.getsockname()
    with relay.Tunnel(relay.listen(":0"), relay.target(f"{host}:{port}", via=via), timeout=None) as tunnel:
        with socket.create_connection(tunnel.address, WAIT) as client:
            client.settimeout(WAIT)
            far = rig.accept()
            send_and_end(client, b"question")
            assert receive_all(far) == b"question"
            send_and_end(far, b"answer")
            assert receive_all(client) == b"answer"
        with socket.create_connection(tunnel.address, WAIT) as client:
            client.settimeout(WAIT)
            far = rig.accept()
            exchange(client, far)
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            far.close()
            assert ending(client) == "reset"


def test_over_ours_in_a_chain_to_tls(dynamic, proxy, certificates, password, serve):
    """TLS to the target, in TLS to our proxy, in TLS to squid."""
    with relay.Tunnel(
        relay.listen(f"tls://{LOOPBACK}:0?cert={certificates.cert}&key={certificates.key}"),
        relay.target(address_of(serve(echo))),
    ) as secure:
        target = f"tls://{LOOPBACK}:{secure.address[1]}?ca={certificates.ca}"
        hops = [hop(proxy, certificates), through(dynamic, certificates, f"&password_file={password}", "me@")]
        with relay.Tunnel(relay.listen(":0"), relay.target(target, via=hops), timeout=None) as tunnel:
            with socket.create_connection(tunnel.address) as client:
                check_repeated(client)


def test_a_wrong_password_is_the_proxys(dynamic, certificates, tmp_path):
    wrong = secret(tmp_path / "wrong", "wrong")
    with pytest.raises(AuthenticationError, match="does not accept the user and the password"):
        relay.connect("127.0.0.1:1", via=[through(dynamic, certificates, f"&password_file={wrong}", "me@")])


def test_a_client_without_a_certificate_asks_for_nothing(certificates, serve):
    receive = relay.listen(listening(certificates, f"&client_ca={certificates.ca}"))
    with relay.Tunnel(receive, relay.dynamic(), timeout=None) as tunnel:
        with pytest.raises(ConnectError, match="cert="):
            relay.connect(address_of(serve(echo)), via=[through(tunnel, certificates)])
        own = f"&cert={certificates.cert}&key={certificates.key}"
        mirrored(serve(echo), [through(tunnel, certificates, own)])
        wait_until(tunnel.recent)
        assert tunnel.recent()[0].identity.kind == "tls"
        changes.set_rules(tunnel, rules_of(None, ["dns:localhost"]))
        with pytest.raises(ConnectError, match="ended without close_notify|was cut"):
            relay.connect(address_of(serve(echo)), via=[through(tunnel, certificates, own)])
        assert ended(tunnel, 2) == ["done", "denied"]


def test_clients_that_ask_for_nothing_are_given_up(certificates):
    """One without a handshake, one without a request, and one with half of it."""
    receive = relay.listen(listening(certificates))
    context = ssl.create_default_context(cafile=str(certificates.ca))
    with relay.Tunnel(receive, relay.dynamic(), timeout=0.5) as tunnel:
        with socket.create_connection(tunnel.address, WAIT) as silent:
            assert ending(silent) == "reset"
        for said in (b"", b"CONNECT 127.0.0.1:1 HT"):
            with (
                socket.create_connection(tunnel.address, WAIT) as raw,
                context.wrap_socket(raw, server_hostname=LOOPBACK, suppress_ragged_eofs=False) as client,
            ):
                client.sendall(said)
                assert ending(client) == "reset"
        wait_until(lambda: tunnel.stats().active == 0)


def test_without_a_tunnel(certificates):
    with relay.http_listen(LOOPBACK, 0, cert=certificates.cert, key=certificates.key) as listener:
        via = [f"https://{LOOPBACK}:{listener.address[1]}?ca={certificates.ca}"]
        client = Thread(relay.connect, "db.internal:5432", via)
        stream, peer = listener.accept()
        with stream:
            assert str(stream.request) == "db.internal:5432"
            assert peer[0] == LOOPBACK
            stream.socket.setblocking(True)
            stream.socket.sendall(stream.request.success_reply)
            with client.result(WAIT) as end:
                end.sendall(b"ping")
                assert receive_exactly(stream.socket, 4) == b"ping"
        waiting = Thread(listener.accept)
        listener.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            waiting.result(WAIT)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_with_a_proxy_takes_another_certificate(environment, certificates, serve, tmp_path, workers):
    """The port stays, and so does what is open."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert(LOOPBACK).private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "both.pem"))
    path, server = tmp_path / "relay.toml", serve(echo)

    def write(options):
        path.write_text(f'workers = {workers}\n[tunnels.out]\nlisten = "https://{LOOPBACK}:0?{options}"\n')

    write(f"cert={certificates.cert}&key={certificates.key}")
    with commands() as start:
        command = start(str(path), command="up", env=environment)
        found = re.search(r" on \S+:(\d+)", command.process.stdout.readline())
        assert found is not None
        via = [f"https://{LOOPBACK}:{found[1]}?ca={certificates.ca}"]
        mirrored(server, via)
        with relay.connect(address_of(server), via=via) as end:
            write(f"cert={tmp_path / 'both.pem'}")
            assert run("ctl", "reload", env=environment).returncode == 0
            with pytest.raises(ConnectError, match="certificate was not accepted"):
                relay.connect(address_of(server), via=via)
            mirrored(server, [f"https://{LOOPBACK}:{found[1]}?ca={tmp_path / 'ca.pem'}"])
            end.sendall(b"ping")
            assert receive_exactly(end, 4) == b"ping"
        assert command.end()[0] == 0


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("https://127.0.0.1:0", "no certificate"),
        ("https://me@127.0.0.1:0?cert=c.pem", "password missing"),
        ("https://127.0.0.1:0?cert=c.pem&alpn=h2", "unknown parameter 'alpn'"),
        ("https://127.0.0.1?cert=c.pem", "no port"),
    ],
)
def test_bad_addresses_get_one_line(address, said):
    ended = run("check", "--", "socks", address)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
