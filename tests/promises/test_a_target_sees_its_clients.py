"""With ``source = "peer"`` a server behind relay sees one address for each client, so its log and its limits work."""

import contextlib
import http.client
import socket
import ssl

import pytest
import trustme
from command_rig import run
from helpers import WAIT, fate_of_client, wait_until
from postgres import LOOPBACK, NGINX, PAGE, Service

import relay
from relay.engine import changes
from relay.engine.warm_pool import PoolState
from relay.streams.identity import Identity
from relay.streams.peer_source import source_address_of

LIMITS = {"nconnect": -1, "timeout": None, "connect_timeout": WAIT, "idle_timeout": None, "linger": 60.0}


class StrictNginx(Service):
    """nginx that answers each client with its address, and sends a page to each address once at a time, slowly."""

    def __init__(self):
        super().__init__()
        (self.folder / "page").write_text(PAGE)
        folders = "".join(
            f"{kind}_temp_path {self.folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (self.folder / "nginx.conf").write_text(
            f"""
            daemon off; master_process off; pid {self.folder}/pid; error_log stderr notice;
            events {{}}
            http {{
                access_log off; {folders}
                limit_conn_zone $binary_remote_addr zone=each:1m;
                server {{
                    listen {self.address}; root {self.folder};
                    location = /who {{ return 200 $remote_addr; }}
                    location = /page {{ limit_conn each 1; limit_rate 1k; }}
                }}
            }}
            """
        )
        self.serve(str(NGINX), "-c", f"{self.folder}/nginx.conf", "-e", "stderr", ready="getrlimit")


@pytest.fixture(scope="module")
def nginx(spawner_thread):
    if NGINX is None:
        pytest.skip("nginx-light is not installed")
    server = StrictNginx()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A certificate authority, and the files of it that the listener needs."""
    folder, made = tmp_path_factory.mktemp("authority"), trustme.CA()
    made.cert_pem.write_to_path(str(folder / "ca.pem"))
    made.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    return made, folder


def connection(address, source=None):
    made = http.client.HTTPConnection(*address[:2], timeout=WAIT, source_address=source and (source, 0))
    return contextlib.closing(made)


def who(address, source=None):
    """Return the address that nginx sees for a client."""
    with connection(address, source) as client:
        client.request("GET", "/who")
        return client.getresponse().read().decode()


def who_by_tls(address, authority, name):
    """Return the address that nginx sees for a client with a certificate for a name."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    authority.issue_cert(name).configure_cert(context)
    made = http.client.HTTPSConnection("localhost", address[1], timeout=WAIT, context=context)
    with contextlib.closing(made) as client:
        client.request("GET", "/who")
        return client.getresponse().read().decode()


def test_each_certificate_has_an_address_of_its_own(nginx, authority):
    made, folder = authority
    listener = relay.listen(f"tls://127.0.0.1:0?cert={folder}/server.pem&client_ca={folder}/ca.pem")
    with relay.Tunnel(listener, relay.tcp(LOOPBACK, nginx.port), source="peer") as tunnel:
        seen = {name: who_by_tls(tunnel.address, made, name) for name in ("alice.example", "bob.example")}
        assert seen == {name: source_address_of(Identity("tls", name)) for name in seen}
        assert len({*seen.values(), "127.0.0.1"}) == 3
        assert who_by_tls(tunnel.address, made, "alice.example") == seen["alice.example"]


def test_the_limit_of_a_server_holds_for_each_client(nginx):
    with relay.Tunnel(
        relay.listen(":0"), relay.target(f"localhost:{nginx.port}"), timeout=None, source="peer"
    ) as tunnel:
        with contextlib.ExitStack() as stack:
            answers = []
            for source in ("127.0.0.7", "127.0.0.7", "127.0.0.8", None, None):
                client = stack.enter_context(connection(tunnel.address, source))
                client.request("GET", "/page")
                answers.append(client.getresponse().status)
            assert answers == [200, 503, 200, 200, 503]
        assert who(tunnel.address, "127.0.0.9") == "127.0.0.9"
        assert who(tunnel.address) not in ("127.0.0.1", "127.0.0.9")


def test_a_fixed_source(nginx):
    with relay.Tunnel(relay.listen(":0"), relay.tcp(LOOPBACK, nginx.port), source="127.44.5.6", warm=1) as tunnel:
        assert who(tunnel.address) == who(tunnel.address, "127.0.0.9") == "127.44.5.6"


def test_a_new_route_from_the_clients_leaves_no_stream_without_one(nginx):
    """A reload reroutes a tunnel before it changes ``warm``: a client in between has its own address, too."""
    target = relay.tcp(LOOPBACK, nginx.port)
    with relay.Tunnel(relay.listen(":0"), target, warm=1, timeout=None) as tunnel:
        wait_until(lambda: (warm := tunnel.metrics().warm) is not None and warm.ready == 1)
        changes.reroute(tunnel, relay.tcp(LOOPBACK, nginx.port), None, "peer")
        assert tunnel._relay._connector.warm.state is PoolState.STOPPED
        assert who(tunnel.address, "127.0.0.9") == "127.0.0.9"
        assert tunnel.metrics().warm.ready == 0
        changes.update(tunnel, **LIMITS, warm=1)
        wait_until(lambda: tunnel.metrics().warm.ready == 1)
        assert who(tunnel.address, "127.0.0.9") == "127.0.0.1"


def test_it_changes_in_place(nginx):
    with relay.Tunnel(relay.listen(":0"), relay.tcp(LOOPBACK, nginx.port), source="127.44.5.6") as tunnel:
        changes.update(tunnel, **LIMITS, source="peer")
        assert who(tunnel.address, "127.0.0.9") == "127.0.0.9"
        changes.reroute(tunnel, relay.target(f"localhost:{nginx.port}"), None, "peer")
        assert who(tunnel.address, "127.0.0.9") == "127.0.0.9"
        changes.update(tunnel, **LIMITS)
        assert who(tunnel.address, "127.0.0.9") == "127.0.0.1"


@pytest.mark.parametrize("workers", [None, 2])
def test_in_child_processes(nginx, workers):
    with relay.spawn(":0", nginx.address, source="peer", workers=workers) as tunnel:
        assert who(tunnel.address, "127.0.0.9") == "127.0.0.9"


def test_a_unix_user_has_an_address(nginx, tmp_path):
    path = str(tmp_path / "s")
    with relay.Tunnel(relay.listen(f"unix://{path}"), relay.tcp(LOOPBACK, nginx.port), source="peer") as tunnel:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(WAIT)
            client.connect(path)
            client.sendall(b"GET /who HTTP/1.0\r\n\r\n")
            with client.makefile("rb") as answer:
                seen = answer.read().rpartition(b"\r\n")[2].decode()
        wait_until(lambda: tunnel.recent())
        assert seen == source_address_of(tunnel.recent()[-1].identity)


def test_an_address_that_is_not_there_is_the_reason(nginx, caplog):
    with relay.Tunnel(relay.listen(":0"), relay.tcp("192.0.2.7", 9), source="192.0.2.1") as tunnel:
        assert fate_of_client(tunnel.address) == "reset"
        wait_until(lambda: tunnel.recent())
        assert tunnel.recent()[-1].reason == "unreachable"
    assert (
        "192.0.2.7:9: source 192.0.2.1: this machine has no such address; set source to one that it has" in caplog.text
    )


def test_a_file(nginx, tmp_path):
    for keys, text in [
        ('target = "127.0.0.1:9"\nsource = "eth0"', "expected peer or an IP address of this machine, got 'eth0'"),
        ('target = "127.0.0.1:9"\nsource = 5', "expected text"),
        ('target = "127.0.0.1:9"\nsource = "peer"\nwarm = 1', "with source = peer each stream belongs to its client"),
        ('target = "db.example:9"\nsource = "peer"', "db.example:9 may be another machine"),
        ('target = "anywhere"\nsource = "peer"', "the clients of a proxy name their targets; leave it out"),
        ('target = "127.0.0.1:9"\nsource = "peer"', ""),
    ]:
        file = tmp_path / "relay.toml"
        file.write_text(f'[tunnels.web]\nlisten = ":0"\n{keys}\n')
        done = run("check", str(file))
        assert text in " ".join(done.stderr.split())
        assert bool(text) == (done.returncode == 2), done.stderr


def test_the_command(nginx):
    for options, text in [
        (["--source", "eth0"], "--source: expected peer or an IP address of this machine, got 'eth0'"),
        (["--source", "peer", "--warm", "1"], "relay: warm: with source = peer each stream belongs to its client"),
        (["--source", "::1"], f"relay: source: {nginx.address}: it has no IPv6 address, as the source ::1 is"),
        (["--source", "peer", "--via", "socks5://localhost:1"], "relay: source: relay does not connect to "),
    ]:
        done = run("forward", ":0", nginx.address, *options)
        assert done.returncode == 2 and text in " ".join(done.stderr.split()), done.stderr
