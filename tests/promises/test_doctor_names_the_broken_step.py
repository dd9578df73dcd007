"""``relay doctor`` names the one step of a route that is broken, and says what to change."""

import contextlib
import datetime
import functools
import os
import re
import socket
import ssl
import threading
from urllib.parse import quote

import pytest
import trustme
from doctor_rig import diagnose
from helpers import WAIT, Thread, TLSEnd, closed, echo, receive_all
from resume_rig import Rig
from sshd import make_key, server_url

import relay
from relay.cli.commands import command
from relay.cli.doctor import explain
from relay.streams.trace import Stage
from relay.testing import SAMBridge

SOON = 0.3  # seconds that a step may take, where the test lets it hang


@pytest.fixture
def doctor(capsys):
    return functools.partial(diagnose, capsys)


@pytest.fixture
def impatient(monkeypatch):
    """Lets a step be late at once."""

    def shorten(*stages):
        for stage in stages:
            monkeypatch.setitem(explain.LIMITS, stage, (SOON, explain.LIMITS[stage][1]))

    return shorten


@pytest.fixture
def target(serve):
    """A server that speaks first."""
    return "{}:{}".format(*serve(lambda connection: (connection.sendall(b"220 ready\r\n"), connection.recv(1))).address)


@pytest.fixture
def refusing():
    """A port at which nothing listens."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield "127.0.0.1:{}".format(*reserved.getsockname()[1:])


@pytest.fixture
def silent(serve):
    """A server that never says anything."""
    over = threading.Event()
    yield "{}:{}".format(*serve(lambda connection: over.wait(WAIT)).address)
    over.set()


@pytest.fixture
def bridge():
    yield from closed(SAMBridge())


# What is asked => the step that is broken, and words of its text and its advice.
BROKEN = r"""
no-such-host.invalid:80 => resolve: cannot resolve the host name | check the spelling
unix://{tmp_path}/db.sock => connect: No such file | start the service
tls://{target}?ca={certificates.ca} => tls: does not speak TLS | check the port
{target} --via ssh://me@{target}?config=/dev/null&backend=paramiko => ssh version: it sent '220 ready' | check the port
{target} --via socks5://{refusing} => connect: connection refused | check that the service is running
{target} --via socks5://{target} => proxy: does not speak SOCKS5
i2p://stats.i2p --sam {refusing} => sam bridge: no SAM bridge there | [sam] enabled = true
i2p://stats.i2p --sam {target} => sam bridge: not a SAM bridge | 7656
i2p://nobody.i2p --sam {bridge.sam} => destination: does not know this name
"""


@pytest.mark.parametrize("row", BROKEN.strip().splitlines())
def test_one_step_is_broken(doctor, request, row):
    asked, _, told = row.partition(" => ")
    named = re.findall(r"\{(\w+)", asked)
    step, _, words = told.partition(": ")
    doctor(*asked.format(**{name: request.getfixturevalue(name) for name in named}).split()).names(
        step, *words.split(" | ")
    )


# -- resumable streams -------------------------------------------------------------------------------------------------


@pytest.fixture
def resume_server(tmp_path, serve):
    """The address of a hop to a relay that keeps streams for ten minutes, longer than is usual."""
    rig = Rig(tmp_path, serve(echo).address, kept=600.0)
    yield f"resume:unix://{tmp_path}/far.sock"
    rig.close()


@pytest.mark.parametrize("with_target", [True, False])
def test_a_hop_can_resume(doctor, resume_server, target, with_target):
    found = doctor(*[target][:with_target], "--via", resume_server)
    assert found.steps == ["connect", "resume", "proxy request", *["first bytes"][:with_target]]
    assert found.check("resume")["text"] == "a relay there keeps a stream for 600 s while there is no connection"


def test_a_server_that_has_no_relay(doctor, make_sshd, target):
    server = make_sshd("SetEnv PATH=/bin HOME=/nowhere")
    found = doctor(target, "--via", server_url(server.server), "--resume")
    found.names("resume", "relay is not installed there", "pipx install")
    assert found.steps[-1] == "login"


def test_a_socket_of_another_service(doctor, resume_server, tmp_path, target):
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"{tmp_path}/other.sock")
        other.listen()

        def answer():
            with other.accept()[0] as client:
                client.sendall(b"220 ready, and more than a greeting has\r\n")
                receive_all(client)

        answering = Thread(answer)
        found = doctor(target, "--via", resume_server.replace("far", "other"))
        answering.join()
    found.names("resume", "what answers there is no resume server", "check")


# -- names, addresses, sockets -----------------------------------------------------------------------------------------


def test_nothing_is_broken(doctor, target):
    found = doctor(target)
    assert (found.status, found.report["ok"], found.report["failed"]) == (0, True, 0)
    assert found.steps == ["route", "connect", "first bytes"]
    assert found.check("first bytes")["text"] == "220 ready"
    assert found.check("route")["facts"] == {"local": "127.0.0.1", "interface": "lo"}


def test_nothing_listens(doctor, refusing):
    found = doctor(refusing)
    found.names("connect", "connection refused", "check that the service is running")
    assert found.steps == ["route"]


def test_a_name_server_that_does_not_answer(doctor, impatient, monkeypatch):
    impatient(Stage.RESOLVE)
    over = threading.Event()

    def hang(*_, **__):
        over.wait(WAIT)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr("relay.transports.tcp.socket.getaddrinfo", hang)
    try:
        doctor("db.internal:5432").names("resolve", "DNS lookup timed out", "check the name server")
    finally:
        over.set()


def test_a_host_that_drops_packets(doctor, impatient):
    """A listener whose backlog is full drops them, too."""
    impatient(Stage.CONNECT)
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            filling = stack.enter_context(socket.socket())
            filling.setblocking(False)
            filling.connect_ex(full.getsockname())
        found = doctor("127.0.0.1:{}".format(*full.getsockname()[1:]))
    found.names("connect", "no answer in time", "firewall")


def test_a_network_without_a_route(doctor, monkeypatch):
    def no_route(endpoint):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr("relay.streams.connect._open", no_route)
    monkeypatch.setattr("relay.cli.doctor.explain.source_of", no_route)
    doctor("192.0.2.1:80").names("route", "Network is unreachable", "default route")


def test_a_unix_socket_without_permission(doctor, tmp_path, monkeypatch):
    def refused(endpoint):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("relay.streams.connect._open", refused)  # root may open every socket
    doctor(f"unix://{tmp_path}/db.sock").names("connect", "Permission denied", "permissions of the socket")


def test_a_unix_socket_without_a_listener(doctor, tmp_path):
    path = str(tmp_path / "stale.sock")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    doctor(f"unix://{path}").names("connect", "connection refused", "start the service")


def test_a_target_that_closes_at_once(doctor, serve):
    place = "{}:{}".format(*serve(lambda connection: None).address)
    doctor(place).names("first bytes", "closed without data", "accepts connections", status="warning")


def test_a_target_that_is_silent_is_no_failure(doctor, silent):
    found = doctor(silent)
    assert found.status == 0
    assert "waits for its client" in found.check("first bytes")["text"]


def test_a_target_with_terminal_codes(doctor, serve):
    place = "{}:{}".format(*serve(lambda connection: (connection.sendall(b"\x1b[2J\x07"), connection.recv(1))).address)
    assert doctor(place).check("first bytes")["text"] == r"\x1b[2J\x07"


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tls(serve, tmp_path):
    """Makes servers with a certificate: ``tls(leaf, authority)`` returns the address."""

    def make(leaf, authority, *, whole_chain=True):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if whole_chain:
            leaf.configure_cert(context)
        else:
            pem = tmp_path / "leaf.pem"
            pem.write_bytes(leaf.private_key_pem.bytes() + leaf.cert_chain_pems[0].bytes())
            context.load_cert_chain(pem)
        file = tmp_path / "trusted.pem"
        authority.cert_pem.write_to_path(str(file))

        def shake_hands(connection):
            with contextlib.suppress(ssl.SSLError):
                TLSEnd(connection, context, server_side=True).recv(1)

        return f"tls://localhost:{serve(shake_hands).address[1]}?ca={file}"

    return make


def days(number):
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=number)


def test_tls_that_is_right(doctor, tls):
    authority = trustme.CA()
    found = doctor(tls(authority.issue_cert("localhost"), authority))
    assert found.status == 0
    assert found.steps[-3:] == ["tls", "certificate", "first bytes"]
    assert found.check("tls")["facts"]["version"] == "TLSv1.3"
    assert found.check("certificate")["facts"]["names"] == ["localhost"]


@pytest.mark.parametrize(
    ("name", "since", "until", "words", "status"),
    [
        ("localhost", -5, 10, ["for 10 days", "renew it"], "warning"),
        ("localhost", -9, -3, ["expired", "3 days ago", "a new one", "clock"], "failed"),
        ("localhost", 2, 30, ["not yet valid", "in 2 days", "clock"], "failed"),
        ("db.example", -5, 99, ["db.example", "servername="], "failed"),
    ],
    ids=["ends soon", "has expired", "is not yet valid", "for another name"],
)
def test_tls_certificate(doctor, tls, name, since, until, words, status):
    authority = trustme.CA()
    leaf = authority.issue_cert(name, not_before=days(since), not_after=days(until))
    doctor(tls(leaf, authority)).names("certificate", *words, status=status)


def test_tls_certificate_of_another_authority(doctor, tls):
    doctor(tls(trustme.CA().issue_cert("localhost"), trustme.CA())).names("certificate", "issuer", "ca=")


def test_tls_certificate_that_is_self_signed(doctor, tls):
    authority = trustme.CA()

    class Own:
        private_key_pem, cert_chain_pems = authority.private_key_pem, [authority.cert_pem]

    found = doctor(tls(Own, trustme.CA(), whole_chain=False))
    found.names("certificate", "self-signed", "ca=")
    assert found.check("certificate")["facts"]["self_signed"]


def test_tls_chain_that_is_incomplete(doctor, tls):
    authority = trustme.CA()
    leaf = authority.create_child_ca().issue_cert("localhost")
    doctor(tls(leaf, authority, whole_chain=False)).names("certificate", "whole chain", "fullchain.pem")


def test_tls_server_that_is_silent(doctor, silent, certificates, impatient):
    impatient(Stage.TLS)
    doctor(f"tls://{silent}?ca={certificates.ca}").names("tls", "no TLS handshake in time", "speak TLS?")


# -- SSH ---------------------------------------------------------------------------------------------------------------

UP_TO_LOGIN = ["route", "connect", "ssh version", "key exchange", "host key", "login"]


def ssh_url(server, **changed):
    """The address of an embedded server with other parameters."""
    host, port = server.address
    fields = {"keyfile": server.keyfile, "hostkey": server.fingerprint, "config": os.devnull} | changed
    query = "&".join(f"{name}={quote(str(value), safe='/:')}" for name, value in fields.items() if value is not None)
    return f"ssh://{server.user}@{host}:{port}?{query}"


def route_to(found):
    return [step for step in found.steps if step not in ("key file", "known hosts")]


def test_ssh_that_is_right(doctor, ssh_server, target):
    found = doctor(target, "--via", ssh_server.url)
    assert found.status == 0
    assert route_to(found) == [*UP_TO_LOGIN, "forwarding", "target", "first bytes"]
    assert found.check("host key")["facts"]["fingerprint"] == ssh_server.fingerprint
    assert found.check("login")["facts"]["offered"] == ["publickey"]
    assert found.check("key exchange")["facts"]["kex"]


def test_ssh_target_that_refuses(doctor, ssh_server, refusing):
    found = doctor(refusing, "--via", ssh_server.url)
    found.names("target", "connection refused (reported by ssh://", "check that the service is running")
    assert route_to(found) == [*UP_TO_LOGIN, "forwarding"]


@pytest.mark.parametrize("backend", ["paramiko", "openssh"])
def test_ssh_host_key_that_is_unknown(doctor, ssh_server, target, tmp_path, backend):
    empty = tmp_path / "known_hosts"
    empty.touch(0o600)
    url = ssh_url(ssh_server, hostkey=None, known_hosts=empty, backend=backend)
    doctor(target, "--via", url).names("host key", ssh_server.fingerprint, str(empty), "accept_new")


@pytest.mark.parametrize("backend", ["paramiko", "openssh"])
def test_ssh_host_key_that_has_changed(doctor, ssh_server, target, tmp_path, backend):
    other = make_key(tmp_path / "other")
    known = tmp_path / "known_hosts"
    known.write_text("[{}]:{} ".format(*ssh_server.address) + other + "\n")
    known.chmod(0o600)
    url = ssh_url(ssh_server, hostkey=None, known_hosts=known, backend=backend)
    doctor(target, "--via", url).names("host key", "changed", "ssh-keygen", str(known))


def test_ssh_host_key_that_would_be_stored_is_not(doctor, ssh_server, target, tmp_path):
    empty = tmp_path / "known_hosts"
    url = ssh_url(ssh_server, hostkey=None, known_hosts=empty, accept_new="yes")
    found = doctor(target, "--via", url)
    found.names("host key", ssh_server.fingerprint, "compare the fingerprint", status="warning")
    assert not empty.exists()


def test_ssh_host_key_that_the_openssh_client_would_store_is_not(doctor, ssh_server, target, tmp_path):
    empty = tmp_path / "known_hosts"
    url = ssh_url(ssh_server, hostkey=None, known_hosts=empty, accept_new="yes", backend="openssh")
    doctor(target, "--via", url).names("host key", ssh_server.fingerprint)
    assert not empty.exists()


@pytest.mark.parametrize("line", ["AllowTcpForwarding no", "PermitOpen 127.0.0.1:1"])
def test_ssh_server_that_does_not_forward(doctor, make_sshd, target, line):
    found = doctor(target, "--via", server_url(make_sshd(line).server))
    found.names("forwarding", "denied", "AllowTcpForwarding", "PermitOpen")


def test_ssh_key_that_is_not_accepted(doctor, ssh_server, target, tmp_path):
    make_key(tmp_path / "wrong")
    url = ssh_url(ssh_server, keyfile=tmp_path / "wrong")
    doctor(target, "--via", url).names("login", "rejected", "publickey", "authorized_keys")


def test_ssh_password_that_is_wrong(doctor, make_ssh_server, target, tmp_path):
    server = make_ssh_server(users={"me": "right"}, methods=["password"])
    secret = tmp_path / "password"
    secret.touch(0o600)
    secret.write_text("wrong-secret\n")
    found = doctor(target, "--via", ssh_url(server, keyfile=None, password_file=secret))
    found.names("login", "rejected: password", "the password or the user name is wrong")
    assert "wrong-secret" not in str(found.report)


def test_ssh_passphrase_that_is_wrong(doctor, ssh_server, target, tmp_path):
    make_key(tmp_path / "locked", "a right phrase")
    secret = tmp_path / "passphrase"
    secret.touch(0o600)
    secret.write_text("a wrong phrase\n")
    url = ssh_url(ssh_server, keyfile=tmp_path / "locked", passphrase_file=secret)
    found = doctor(target, "--via", url)
    found.names("configuration", "locked", "passphrase")
    assert "a wrong phrase" not in str(found.report)


def test_ssh_key_file_that_is_missing(doctor, ssh_server, target, tmp_path):
    url = ssh_url(ssh_server, keyfile=tmp_path / "missing")
    doctor(target, "--via", url).names("configuration", "missing", "no such file", "check the path")


def test_ssh_key_file_that_others_can_read(doctor, ssh_server, target):
    os.chmod(ssh_server.keyfile, 0o644)
    doctor(target, "--via", ssh_server.url).names("configuration", "mode 0644", "chmod 600")


def test_ssh_password_file_that_others_can_read(doctor, ssh_server, target, tmp_path):
    secret = tmp_path / "password"
    secret.write_text("a secret\n")
    secret.chmod(0o644)
    found = doctor(target, "--via", ssh_url(ssh_server, password_file=secret))
    assert found.check("configuration")["status"] == "failed"
    assert "chmod 600" in found.check("configuration")["advice"]
    assert "a secret" not in str(found.report)


def test_ssh_server_that_is_silent(doctor, silent, target, impatient):
    impatient(Stage.KEY_EXCHANGE)
    doctor(target, "--via", f"ssh://me@{silent}?config=/dev/null").names("ssh version", "no answer in time")


def test_ssh_server_that_closes_during_the_key_exchange(doctor, serve, target):
    def leave(connection):
        connection.sendall(b"SSH-2.0-Brief_1.0\r\n")
        connection.recv(4096)

    place = "{}:{}".format(*serve(leave).address)
    found = doctor(target, "--via", f"ssh://me@{place}?config=/dev/null&backend=paramiko")
    found.names("key exchange", "key exchange was not finished")
    assert found.check("ssh version")["text"] == "SSH-2.0-Brief_1.0"


def test_ssh_server_without_a_common_algorithm(doctor, make_sshd, target):
    server = make_sshd("Ciphers 3des-cbc").server
    found = doctor(target, "--via", server_url(server, backend="paramiko"))
    found.names("key exchange", "no cipher in common", "3des-cbc", "backend")


def test_ssh_server_that_only_the_openssh_client_understands(doctor, make_sshd, target):
    """Relay falls back to it by itself, and so does the doctor; what failed before is no failure."""
    server = make_sshd("Ciphers chacha20-poly1305@openssh.com").server
    found = doctor(target, "--via", server_url(server, backend=None))
    assert found.status == 0, found.checks
    assert found.check("key exchange")["status"] == "warning"
    assert "OpenSSH client" in found.check("login")["text"]


# -- chains and proxies ------------------------------------------------------------------------------------------------


def test_a_second_hop_that_is_broken(doctor, ssh_server, make_ssh_server, target):
    second = make_ssh_server(allow_forwarding=False)
    found = doctor(target, "--via", ssh_server.url, "--via", second.url)
    found.names("forwarding", "AllowTcpForwarding")
    assert route_to(found) == [*UP_TO_LOGIN, "forwarding", "target", *UP_TO_LOGIN[2:]]
    assert "{}:{}".format(*second.address) in found.check("forwarding")["subject"]


def test_a_second_hop_of_the_same_name(doctor, ssh_server, target, tmp_path):
    """Steps differ by their order, not by their names."""
    unknown = ssh_url(ssh_server, hostkey=None, known_hosts=tmp_path / "none", backend="paramiko")
    found = doctor(target, "--via", ssh_server.url, "--via", unknown)
    found.names("host key", ssh_server.fingerprint, "is not known")
    assert route_to(found) == [*UP_TO_LOGIN, "forwarding", "target", *UP_TO_LOGIN[2:4]]


def test_a_second_hop_that_is_down(doctor, ssh_server, refusing, target):
    found = doctor(target, "--via", ssh_server.url, "--via", f"ssh://me@{refusing}?config=/dev/null")
    found.names("target", "hop 2 of 2", "connection refused", "check that the service is running")


def test_the_hops_alone(doctor, ssh_server):
    found = doctor("--via", ssh_server.url)
    assert (found.status, route_to(found)) == (0, UP_TO_LOGIN)


def test_a_proxy_with_another_login(doctor, target, tmp_path):
    secret, other = tmp_path / "right", tmp_path / "wrong"
    for path, text in ((secret, "right\n"), (other, "wrong\n")):
        path.touch(0o600)
        path.write_text(text)
    proxy = relay.listen(f"socks5://me@127.0.0.1:0?password_file={secret}")
    with relay.Tunnel(proxy, relay.dynamic(), timeout=None) as tunnel:
        hop = f"socks5://me@127.0.0.1:{tunnel.address[1]}?password_file="
        doctor(target, "--via", f"{hop}{other}").names("proxy login", "does not accept the user", "check")
        found = doctor(target, "--via", f"{hop}{secret}")
    assert found.status == 0
    assert "logged in as me" in found.check("proxy request")["text"]


@pytest.mark.parametrize("scheme", ["socks5", "http"])
def test_a_proxy_that_refuses_the_request(doctor, refusing, scheme):
    with relay.Tunnel(relay.listen(f"{scheme}://127.0.0.1:0"), relay.dynamic(), timeout=None) as tunnel:
        found = doctor(refusing, "--via", f"{scheme}://127.0.0.1:{tunnel.address[1]}")
    found.names(
        "proxy request", *(("refused", "is running") if scheme == "socks5" else ("cannot be reached", "name and port"))
    )


# -- I2P ---------------------------------------------------------------------------------------------------------------


def test_i2p_that_is_right(doctor, bridge, target):
    listener = relay.i2p_listen(sam=bridge.sam)
    with relay.Tunnel(listener, relay.target(target), timeout=None):
        found = doctor(f"i2p://{listener.b32}", "--sam", bridge.sam)
    assert found.status == 0, found.checks
    assert found.steps == ["route", "connect", "sam bridge", "i2p session", "destination", "first bytes"]
    assert found.check("sam bridge")["text"] == "answers, SAM 3.1"
    assert found.check("first bytes")["text"] == "220 ready"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"personality": "java", "user": "me", "password": "right"},
            ["sam login", "rejects the login", "user and pass"],
        ),
        ({"versions": ("3.0", "3.0")}, ["sam version", "3.1 to 3.3", "update the router"]),
    ],
)
def test_i2p_bridge_that_does_not_take_us(doctor, options, words):
    with SAMBridge(**options) as bridge:
        doctor("i2p://stats.i2p", "--sam", bridge.sam).names(*words)


def test_i2p_router_without_tunnels(doctor, impatient):
    impatient(Stage.SESSION)
    with SAMBridge(build_time=WAIT) as bridge:
        doctor("i2p://stats.i2p", "--sam", bridge.sam).names("i2p session", "no tunnels in time", "firewalled")


def test_i2p_destination_that_is_down(doctor, bridge, impatient):
    impatient(Stage.DESTINATION)
    found = doctor(f"i2p://{'a' * 52}.b32.i2p", "--sam", bridge.sam)
    found.names("destination", "check that its server is up")
    assert found.steps == ["route", "connect", "sam bridge", "i2p session"]


def test_i2p_address_that_cannot_be(capsys):
    status = command("doctor").main(["i2p://short.b32.i2p"], prog_name="relay doctor", standalone_mode=False)
    assert status == 2
    assert "short.b32.i2p" in capsys.readouterr().err


def test_i2p_router_alone(doctor, bridge):
    found = doctor("--via", "i2p:", "--sam", bridge.sam)
    assert (found.status, found.steps) == (0, ["route", "connect", "sam bridge", "i2p session"])
