"""A renewed certificate is in use without a signal: of listeners and of clients, with their authorities."""

import contextlib
import socket
import ssl
import threading

import pytest
import trustme
from command_rig import commands
from helpers import WAIT, Thread, receive_exactly, wait_until

import relay


class Files:
    """The files of an authority and of a certificate of it, each renewed in place."""

    def __init__(self, folder):
        folder.mkdir()
        self.ca, self.cert, self.key = (folder / f"{name}.pem" for name in ("ca", "cert", "key"))
        self.renew()

    def renew(self):
        """Write another authority, and a certificate of it; return what the peer sees of this one."""
        authority = trustme.CA()
        made = authority.issue_cert("localhost", "127.0.0.1")
        authority.cert_pem.write_to_path(self.ca)
        made.cert_chain_pems[0].write_to_path(self.cert)
        made.private_key_pem.write_to_path(self.key)
        return ssl.PEM_cert_to_DER_cert(made.cert_chain_pems[0].bytes().decode())

    def shown(self, context):
        """Let a context show the certificate."""
        context.load_cert_chain(self.cert, self.key)
        return context


@pytest.fixture
def server(tmp_path):
    return Files(tmp_path / "server")


@pytest.fixture
def client(tmp_path):
    return Files(tmp_path / "client")


def unverified(version=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


@contextlib.contextmanager
def connected(port, context=None, session=None):
    with socket.create_connection(("127.0.0.1", port), WAIT) as plain:
        context = context or unverified()
        with context.wrap_socket(plain, server_hostname="localhost", session=session) as tls:
            tls.settimeout(WAIT)
            yield tls


def certificate_at(port):
    with connected(port) as tls:
        return tls.getpeercert(binary_form=True)


def answers(tls):
    tls.sendall(b"ping")
    return receive_exactly(tls, 4) == b"ping"


def is_served(port, context, session=None):
    """Return whether the listener takes a client, by the answer of the target: TLS 1.3 denies after the handshake."""
    try:
        with connected(port, context, session) as tls:
            return answers(tls)
    except (ssl.SSLError, ConnectionError):
        return False


# -- listeners --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def forward(listen, target, folder, *options):
    with commands() as start:
        command = start(listen, target, *options)
        yield command.address()[1], command
        assert command.end()[0] == 0


@contextlib.contextmanager
def up(listen, target, folder, top=""):
    file = folder / "relay.toml"
    file.touch(0o600)
    file.write_text(f'control = "none"\n{top}[tunnels.one]\nlisten = "{listen}"\ntarget = "{target}"\n')
    with commands() as start:
        command = start(str(file), command="up")
        yield int(command.process.stdout.readline().partition("127.0.0.1:")[2].partition(" ")[0]), command
        assert command.end()[0] == 0


@contextlib.contextmanager
def tunnel(listen, target, folder):
    with relay.Tunnel(relay.listen(listen), relay.target(target), timeout=None) as made:
        yield made.address[1], made


@contextlib.contextmanager
def accepting(listen, target, folder):
    """A program that accepts by itself."""
    with relay.listen(listen) as listener:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    stream, _ = listener.accept()
                    stream.socket.settimeout(WAIT)
                    threading.Thread(target=echo, args=(stream,), daemon=True).start()

        thread = Thread(serve)
        yield listener.address[1], listener
    thread.result()


def echo(stream):
    with contextlib.suppress(OSError):
        while data := stream.socket.recv(1 << 10):
            stream.socket.sendall(data)
    stream.close()


LISTENERS = {
    "forward": forward,
    "up": up,
    "up with workers": lambda *arguments: up(*arguments, top="workers = 2\n"),
    "relay.Tunnel": tunnel,
    "relay.listen": accepting,
}


@pytest.mark.parametrize("way", LISTENERS)
def test_a_listener_shows_the_renewed_certificate_and_open_connections_go_on(way, server, echo_server, tmp_path):
    listen = f"tls://127.0.0.1:0?cert={server.cert}&key={server.key}"
    with LISTENERS[way](listen, "{}:{}".format(*echo_server.address), tmp_path) as (port, _):
        with connected(port) as before:
            assert answers(before)
            renewed = server.renew()
            assert before.getpeercert(binary_form=True) != renewed
            wait_until(lambda: certificate_at(port) == renewed)
            assert answers(before)


def test_a_listener_shows_the_same_pair_until_the_key_is_there_and_warns_once(server, echo_server, tmp_path):
    listen = f"tls://127.0.0.1:0?cert={server.cert}&key={server.key}"
    with forward(listen, "{}:{}".format(*echo_server.address), tmp_path) as (port, command):
        before, key = certificate_at(port), server.key.read_bytes()
        renewed = server.renew()
        new_key = server.key.read_bytes()
        server.key.write_bytes(key)
        warned = threading.Event()

        def ask():
            while not warned.wait(0.05):
                assert certificate_at(port) == before

        asking = Thread(ask)
        assert "is not that of the certificate in" in command.hear("WARNING")
        warned.set()
        asking.result()
        server.key.write_bytes(new_key)
        wait_until(lambda: certificate_at(port) == renewed)
    assert command.said.count("WARNING") == 1


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda version: version.name)
def test_another_authority_of_clients_holds_for_resumed_sessions_too(version, server, client, echo_server, tmp_path):
    listen = f"tls://127.0.0.1:0?cert={server.cert}&key={server.key}&client_ca={client.ca}"
    with forward(listen, "{}:{}".format(*echo_server.address), tmp_path) as (port, _):
        known = client.shown(unverified(version))
        with connected(port, known) as tls:
            assert answers(tls)
            session = tls.session
        with connected(port, known, session) as tls:
            assert answers(tls) and tls.session_reused
        client.renew()
        newcomer = client.shown(unverified(version))
        wait_until(lambda: is_served(port, newcomer))
        assert not is_served(port, known, session)
        assert not is_served(port, known)


# -- clients ----------------------------------------------------------------------------------------------------------


class Server:
    """A TLS server that demands a certificate, and sends back a word. It notes the certificates of its clients."""

    def __init__(self, server, client):
        self.files, self.trusted = server, client
        self.seen = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._thread = Thread(self._serve)

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self._listening.accept()
                plain.settimeout(WAIT)
                with plain, contextlib.suppress(OSError):
                    self._answer(plain)

    def _answer(self, plain):
        context = self.files.shown(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        context.load_verify_locations(self.trusted.ca)
        context.verify_mode = ssl.CERT_REQUIRED
        with context.wrap_socket(plain, server_side=True) as tls:
            self.seen.append(tls.getpeercert(binary_form=True))
            tls.sendall(tls.recv(4))

    def close(self):
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.result()


@pytest.mark.parametrize("way", ["forward", "relay.tls"])
def test_a_target_gets_the_renewed_certificate_of_the_client_and_is_verified_by_the_new_authority(
    way, server, client, tmp_path
):
    with contextlib.closing(Server(server, client)) as target, contextlib.ExitStack() as stack:
        if way == "forward":
            end = f"tls://localhost:{target.port}?ca={server.ca}&cert={client.cert}&key={client.key}"
            port, _ = stack.enter_context(forward(":0", end, tmp_path))
        else:
            make_send = relay.tls("localhost", target.port, ca=server.ca, cert=client.cert, key=client.key)
            with_tunnel = relay.Tunnel(relay.listen(":0"), make_send, timeout=None)
            port = stack.enter_context(with_tunnel).address[1]

        def is_relayed():
            # Around the connect, too: a client that is reset at once may learn of that before its connect returns.
            with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), WAIT) as plain:
                plain.sendall(b"ping")
                return plain.recv(4) == b"ping"

        assert is_relayed()
        renewed = client.renew()
        wait_until(is_relayed)
        assert target.seen[-1] == renewed
        server.renew()
        wait_until(is_relayed)
