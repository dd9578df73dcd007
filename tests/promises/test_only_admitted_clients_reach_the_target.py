"""relay decides about a client before it connects to the target: by the same rules at every listener."""

import datetime
import logging
import os
import socket
import ssl
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from helpers import WAIT, Server, Thread, closed, fate_of_client, makes, wait_until

import relay
from relay.transports.tls.context import certificate_of


class Target(Server):
    """A server that greets its clients, and counts them."""

    def __init__(self):
        self.clients = 0
        super().__init__(self._greet)

    def _greet(self, connection):
        self.clients += 1
        connection.sendall(b"welcome")
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)


@pytest.fixture
def target():
    yield from closed(Target())


@pytest.fixture
def relayed_to(target):
    """Make a tunnel to the target."""
    options = {"timeout": None, "linger": 5, "name": "it"}
    yield from makes(lambda receive, **lists: relay.Tunnel(receive, relay.tcp(*target.address), **options, **lists))


def is_served(address, context=None, name=None):
    """Return whether a client gets the greeting."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        with socket.socket(family) as client:
            client.settimeout(WAIT)
            client.connect(address if isinstance(address, str) else tuple(address[:2]))
            end = context.wrap_socket(client, server_hostname=name) if context is not None else client
            with end:
                return end.recv(7) == b"welcome"
    except OSError:
        return False


def denials(tunnel):
    wait_until(lambda: not tunnel.connections())
    return [record.rule for record in tunnel.recent() if record.reason == "denied"]


# -- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listen", "client", "lists", "rule"),
    [
        ("127.0.0.1", "127.0.0.1", {"allow": ["127.0.0.0/8"]}, None),
        ("127.0.0.1", "127.0.0.1", {"allow": ["10.0.0.0/8"]}, "allow"),
        ("127.0.0.1", "127.0.0.1", {"deny": "127.0.0.1"}, "deny cidr:127.0.0.1/32"),
        ("127.0.0.1", "127.0.0.1", {"allow": ["127.0.0.0/8"], "deny": ["::1"]}, None),
        ("::1", "::1", {"allow": ["::1"]}, None),
        ("::1", "::1", {"allow": ["127.0.0.0/8"], "deny": ["::/0"]}, "deny cidr:::/0"),
        ("::", "127.0.0.1", {"allow": ["127.0.0.0/8"]}, None),  # mapped
        ("::", "127.0.0.1", {"allow": ["::/0"]}, "allow"),
        ("::", "::1", {"allow": ["127.0.0.0/8"]}, "allow"),
    ],
)
def test_by_address(target, relayed_to, caplog, listen, client, lists, rule):
    receive = socket.create_server((listen, 0), family=socket.AF_INET6 if ":" in listen else socket.AF_INET)
    if listen == "::":
        receive.close()
        receive = socket.create_server((listen, 0), family=socket.AF_INET6, dualstack_ipv6=True)
    tunnel = relayed_to(receive, **lists)
    assert is_served((client, tunnel.address[1])) == (rule is None)
    assert denials(tunnel) == ([] if rule is None else [rule])
    assert target.clients == (rule is None)
    if rule is not None:
        lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        (line,) = [line for line in lines if line.startswith("denied peer=")]
        assert line.endswith(f" tunnel=it rule={rule}")
        assert tunnel.metrics().denied[rule] == 1


def test_a_file_that_changes_while_clients_come(target, relayed_to, tmp_path):
    path, new = tmp_path / "list", tmp_path / "new"
    path.write_text("127.0.0.0/8\n")
    tunnel = relayed_to(socket.create_server(("127.0.0.1", 0)), allow=path)
    ends = threading.Event()
    results = []

    def come():
        while not ends.is_set():
            results.append(is_served(tunnel.address))

    clients = [Thread(come) for _ in range(3)]
    for number in range(20):
        text = "127.0.0.0/8\n" if number % 2 else "10.0.0.0/8\n"
        new.write_text(text + "#" * number)
        os.replace(new, path)
        assert is_served(tunnel.address) == bool(number % 2)  # each client sees the file as it is when it comes
    ends.set()
    for client in clients:
        client.result()
    wait_until(lambda: not tunnel.connections())
    assert {True, False} <= set(results)


def test_an_invalid_file_changes_nothing(target, relayed_to, tmp_path, caplog):
    path = tmp_path / "list"
    path.write_text("127.0.0.0/8\n")
    tunnel = relayed_to(socket.create_server(("127.0.0.1", 0)), allow=path)
    path.write_text("127.0.0.0/8\n127.0.0.1/8\n")
    assert is_served(tunnel.address)
    assert is_served(tunnel.address)
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    expected = (
        f"{path}, line 2: cidr:127.0.0.1/8: it has host bits set; write 127.0.0.0/8, or 127.0.0.1 for the address"
    )
    assert line == f"it: {expected}; the previous list stays in force"


# -- users ------------------------------------------------------------------------------------------------------------


def reply_to_nobody(path):
    """Connect to a Unix socket as another user; return the reply, and the words of nc."""
    words = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "nc", "-U", path]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=WAIT, check=False)
    return done.stdout, done.stderr.decode()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize(
    ("rights", "is_served"),
    [("?mode=0666", True), ("?mode=0660&group=nogroup", True), ("?mode=0660", False), ("", False)],
)
def test_another_user_whom_the_socket_lets_in(target, relayed_to, rights, is_served):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = f"{folder}/s"
        tunnel = relayed_to(relay.listen(f"unix://{path}{rights}"), allow=["user:nobody"])
        reply, said = reply_to_nobody(path)
        assert bool(reply) is is_served is ("Permission denied" not in said)
        wait_until(lambda: [str(one.identity) for one in tunnel.recent()] == ["unix:nobody"] * is_served)


@pytest.mark.parametrize("lists", [{"allow": ["user:root"]}, {"deny": ["user:nobody"]}, {"allow": ["user:0"]}])
def test_by_user(target, relayed_to, lists):
    """The test runs as root, as in the containers that run it; another user may not change who it is."""
    if os.getuid() != 0:
        lists = {kind: [f"user:{os.getuid()}" if kind == "allow" else "user:nobody"] for kind in lists}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = f"{folder}/s"
        tunnel = relayed_to(relay.listen(f"unix://{path}?mode=0666"), **lists)
        assert is_served(path)
        if os.getuid() == 0:
            assert reply_to_nobody(path)[0] == b""
            assert denials(tunnel) == ["deny user:nobody" if "deny" in lists else "allow"]
            (record,) = [record for record in tunnel.recent() if record.reason == "denied"]
            assert str(record.identity) == "unix:nobody"
        assert target.clients == 1


# -- certificates -----------------------------------------------------------------------------------------------------


class Authority:
    """An authority that certifies any name."""

    def __init__(self, folder):
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority")])
        made = self._builder(self.name, self.key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        uses = dict.fromkeys(
            ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"), False
        )
        uses |= dict.fromkeys(("key_agreement", "encipher_only", "decipher_only"), False)
        made = made.add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **uses), critical=True)
        self.file = folder / "authority.pem"
        self.file.write_bytes(made.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def _builder(self, name, key):
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(self.name).public_key(key)
        # Since Python 3.13 what a client trusts by default has these.
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        builder = builder.add_extension(issuer, critical=False)
        day = datetime.timedelta(days=1)
        return builder.serial_number(x509.random_serial_number()).not_valid_before(now - day).not_valid_after(now + day)

    def issue(self, common_name, *names):
        """Return the file of a key with its certificate, and the hash of the key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
        builder = self._builder(subject, key.public_key())
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        made = builder.sign(self.key, hashes.SHA256())
        file = self.folder / f"{common_name}.pem"
        plain = serialization.NoEncryption(), serialization.PrivateFormat.PKCS8, serialization.Encoding.PEM
        file.write_bytes(key.private_bytes(*plain[::-1]) + made.public_bytes(serialization.Encoding.PEM))
        return file, certificate_of(made.public_bytes(serialization.Encoding.DER)).spki


def test_by_certificate(target, relayed_to, tmp_path):
    authority = Authority(tmp_path)
    server, _ = authority.issue("server", x509.DNSName("localhost"))
    names = x509.DNSName("web.svc"), x509.UniformResourceIdentifier("spiffe://example/web")
    web, web_key = authority.issue("web", *names)
    plain, _ = authority.issue("plain")

    def context(file):
        made = ssl.create_default_context(cafile=str(authority.file))
        made.load_cert_chain(file)
        return made

    url = f"tls://127.0.0.1:0?cert={server}&key={server}&client_ca={authority.file}"
    for lists, served in [
        ({"allow": ["dns:*.svc"]}, [True, False]),
        ({"allow": ["dns:**.svc", "dns:web.svc"]}, [True, False]),
        ({"allow": ["uri:spiffe://example/*"]}, [True, False]),
        ({"allow": ["uri:spiffe://example/*/*"]}, [False, False]),
        ({"allow": ["cn:plain"]}, [False, True]),
        ({"allow": [f"spki:{web_key}"]}, [True, False]),
        ({"allow": ["127.0.0.1"], "deny": [f"spki:{web_key}"]}, [False, True]),
        ({"allow": ["dns:plain", "uri:**"]}, [True, False]),
    ]:
        before = target.clients
        tunnel = relayed_to(relay.listen(url), **lists)
        results = [is_served(tunnel.address, context(file), "localhost") for file in (web, plain)]
        assert results == served, lists
        assert target.clients - before == sum(served)
        assert len(denials(tunnel)) == 2 - sum(served)
        tunnel.close()


# -- logins -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lists", "served"), [({"allow": ["login:ann"]}, True), ({"deny": ["login:ann"]}, False)])
def test_by_login(target, lists, served):
    receive = relay.socks_listen("127.0.0.1", 0, user="ann", password="secret")
    with relay.Tunnel(receive, relay.dynamic(), timeout=None, **lists) as tunnel:
        proxy, (host, port) = "{}:{}".format(*tunnel.address), target.address
        words = ["curl", "--silent", "--http0.9", "--max-time", str(WAIT), "--proxy-user", "ann:secret"]
        done = subprocess.run(
            [*words, "--socks5", proxy, f"http://{host}:{port}/"], capture_output=True, timeout=WAIT, check=False
        )
        assert done.stdout == (b"welcome" if served else b"")
        assert denials(tunnel) == ([] if served else ["deny login:ann"])
    assert target.clients == served


@pytest.mark.parametrize("lists", [{"deny": ["127.0.0.1"]}, {"allow": ["10.0.0.0/8"]}])
def test_a_denied_address_cannot_try_a_password(lists):
    receive = relay.socks_listen("127.0.0.1", 0, user="ann", password="secret")
    with relay.Tunnel(receive, relay.dynamic(), timeout=None, **lists) as tunnel:
        assert fate_of_client(tunnel.address) == "reset"
        assert denials(tunnel) == ["deny cidr:127.0.0.1/32" if "deny" in lists else "allow"]


# -- destinations and servers -----------------------------------------------------------------------------------------


def test_by_destination(i2p_double, target):
    _, port = target.address
    with i2p_double.serve(port, allow=[f"i2p:{'a' * 52}.b32.i2p"]) as server:
        with i2p_double.reach(server.dest) as client:
            assert not is_served(client.address)
        wait_until(lambda: server.recent())
        assert denials(server) == ["allow"]
        assert str(server.recent()[0].identity) == f"i2p:{client.b32}"
    assert target.clients == 0
    with i2p_double.serve(port) as first, i2p_double.reach(first.dest) as client:
        assert is_served(client.address)


@pytest.mark.parametrize(
    ("lists", "rule"),
    [
        ({"allow": ["ssh:127.0.0.1"]}, None),
        ({"allow": ["127.0.0.0/8"]}, "allow"),  # the server only says so
        ({"allow": ["ssh:127.0.0.1"], "deny": ["127.0.0.0/8"]}, "deny cidr:127.0.0.0/8"),
        ({"allow": ["ssh:another"]}, "allow"),
    ],
)
def test_by_server(sshd, target, relayed_to, caplog, lists, rule):
    tunnel = relayed_to(relay.ssh_listen(sshd.url), **lists)
    assert is_served(tunnel.address) == (rule is None)
    assert denials(tunnel) == ([] if rule is None else [rule])
    assert target.clients == (rule is None)
    lines = [line for line in caplog.messages if line.startswith("denied ")]
    # Not the address that the server says: a program such as fail2ban would ban whomever a server names.
    named = str(tunnel.recent()[0].identity)
    assert named.startswith("ssh:") and "127.0.0.1" in named
    assert lines == ([] if rule is None else [f"denied peer={named} tunnel=it rule={rule}"])


# -- a program --------------------------------------------------------------------------------------------------------


def test_a_program_decides(target, relayed_to):
    seen = []

    def admit(identity):
        seen.append(identity)
        return len(seen) == 2

    tunnel = relayed_to(socket.create_server(("127.0.0.1", 0)), allow=["127.0.0.0/8"], admit=admit)
    assert [is_served(tunnel.address) for _ in range(3)] == [False, True, False]
    assert denials(tunnel) == ["admit", "admit"]
    assert target.clients == 1
    assert {identity.host for identity in seen} == {"127.0.0.1"}
