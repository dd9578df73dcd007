"""The PROXY protocol with HAProxy, nginx, Apache and PostgreSQL: each learns who the client is, and tells relay.

One process of each serves all tests. The web servers answer with what they know of the client.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import psycopg
import pytest
import trustme
from helpers import WAIT, ending, wait_until
from postgres import PASSWORD, POSTGRES, Postgres

import relay

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"
HAPROXY, NGINX, APACHE = (shutil.which(name, path=PATH) for name in ("haproxy", "nginx", "apache2"))
MODULES = Path("/usr/lib/apache2/modules")
STREAM = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
HEALTH_CHECK = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"  # LOCAL of version 2

pytestmark = pytest.mark.skipif(
    not (HAPROXY and NGINX and APACHE and POSTGRES and MODULES.exists() and STREAM.exists()),
    reason="haproxy, nginx with its stream module, apache2-bin and postgresql are not all installed",
)

HAPROXY_CONF = """
global
    stats socket {folder}/stats mode 600
defaults
    mode tcp
    timeout connect 60s
    timeout client 60s
    timeout server 60s
frontend web
    mode http
    bind unix@{folder}/haproxy accept-proxy
    http-request return status 200 content-type text/plain lf-string "%[src] %[src_port] %[dst_port] %[fc_pp_unique_id]"
frontend names
    mode http
    bind unix@{folder}/names accept-proxy
    http-request return status 200 content-type text/plain lf-string "%[fc_pp_authority]"
listen v1
    bind fd@{v1}
    server relay unix@{folder}/relay send-proxy
listen v2
    bind fd@{v2}
    server relay unix@{folder}/relay send-proxy-v2 proxy-v2-options crc32c
listen ssl
    bind fd@{ssl} ssl crt {folder}/both.pem ca-file {folder}/ca.pem verify required
    server relay unix@{folder}/relay send-proxy-v2-ssl-cn
listen full
    bind fd@{full} ssl crt {folder}/both.pem ca-file {folder}/ca.pem verify required alpn http/1.1
    unique-id-format it-%pid-%rt
    server relay unix@{folder}/full send-proxy-v2 proxy-v2-options ssl,cert-cn,ssl-cipher,authority,unique-id
listen postgres
    bind unix@{folder}/postgres accept-proxy
    server postgres {postgres}
listen checked
    bind unix@{folder}/unused
    server relay unix@{folder}/checked check inter 50ms check-send-proxy send-proxy-v2
"""
NGINX_CONF = """
load_module {stream};
daemon off;
user {user};
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
    uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
    server {{
        listen unix:{folder}/nginx proxy_protocol;
        location / {{ return 200 "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_port"; }}
    }}
}}
stream {{
    server {{ listen 127.0.0.1:{port}; proxy_pass unix:{folder}/relay; proxy_protocol on; }}
}}
"""
APACHE_CONF = """
ServerRoot {folder}
ServerName localhost
PidFile {folder}/apache.pid
ErrorLog {folder}/apache.log
Listen 127.0.0.1:{port}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule headers_module {modules}/mod_headers.so
LoadModule remoteip_module {modules}/mod_remoteip.so
User {user}
RemoteIPProxyProtocol On
StartServers 1
Header always set Client "expr=%{{REMOTE_ADDR}}"
Mutex fcntl:{folder}
"""


def reserve(stack):
    """Bind a port, and never listen at it: a server with SO_REUSEADDR can."""
    made = stack.enter_context(socket.socket())
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", 0))
    return made.getsockname()[1]


class World:
    """The servers, and two tunnels behind their proxies."""

    def __init__(self, stack):
        self.folder = folder = Path(tempfile.mkdtemp(prefix="relay-"))
        stack.callback(shutil.rmtree, folder)
        folder.chmod(0o711)
        user = "root" if os.geteuid() == 0 else "nobody"
        self.postgres = Postgres()
        stack.callback(self.postgres.stop)
        authority = trustme.CA()
        server, client = authority.issue_cert("localhost"), authority.issue_cert("alice", common_name="alice")
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        server.private_key_and_cert_chain_pem.write_to_path(str(folder / "both.pem"))
        client.private_key_and_cert_chain_pem.write_to_path(str(folder / "alice.pem"))
        # Before HAProxy, which connects to the second one at once.
        self.tunnel = stack.enter_context(
            relay.Tunnel(
                relay.listen(f"unix://{folder}/relay"),
                relay.target(f"unix://{folder}/haproxy"),
                accept_proxy=["unix"],
                send_proxy="v2",
            )
        )
        self.checked = stack.enter_context(
            relay.Tunnel(
                relay.listen(f"unix://{folder}/checked"), relay.target("127.0.0.1:1"), accept_proxy=["unix"], timeout=5
            )
        )
        inherited = {
            name: stack.enter_context(socket.create_server(("127.0.0.1", 0))) for name in ("v1", "v2", "ssl", "full")
        }
        self.senders = {name: made.getsockname() for name, made in inherited.items()}
        self.senders["nginx"] = ("127.0.0.1", reserve(stack))
        apache = reserve(stack)
        self.receivers = {
            "haproxy": f"unix://{folder}/haproxy",
            "nginx": f"unix://{folder}/nginx",
            "apache": f"127.0.0.1:{apache}",
        }
        numbers = {name: made.fileno() for name, made in inherited.items()}
        (folder / "haproxy.cfg").write_text(
            HAPROXY_CONF.format(folder=folder, postgres=self.postgres.address, **numbers)
        )
        port = self.senders["nginx"][1]
        (folder / "nginx.conf").write_text(NGINX_CONF.format(folder=folder, user=user, port=port, stream=STREAM))
        (folder / "apache.conf").write_text(
            APACHE_CONF.format(folder=folder, user="www-data", port=apache, modules=MODULES)
        )
        for argv in (
            [HAPROXY, "-db", "-q", "-f", folder / "haproxy.cfg"],
            [NGINX, "-c", folder / "nginx.conf", "-e", folder / "nginx.log"],
            [APACHE, "-D", "FOREGROUND", "-f", folder / "apache.conf"],
        ):
            process = subprocess.Popen(
                argv, pass_fds=tuple(numbers.values()), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
            stack.callback(process.wait, WAIT)
            stack.callback(process.terminate)
        for address in (folder / "haproxy", folder / "nginx", self.senders["nginx"], ("127.0.0.1", apache)):
            wait_until(lambda address=address: is_listening(address))
        wait_until(lambda: self.check()["check_status"] == "L4OK")
        # Now the tunnels open their spare descriptors, as each does when it accepts for the first time.
        ask(socket.create_connection(self.senders["v1"]))
        with socket.socket(socket.AF_UNIX) as check:
            check.settimeout(WAIT)
            check.connect(f"{folder}/checked")
            check.sendall(HEALTH_CHECK)
            assert ending(check) in ("end of file", "reset")

    def check(self):
        """Return what HAProxy knows of its server with health checks."""
        with socket.socket(socket.AF_UNIX) as stats:
            stats.settimeout(WAIT)
            stats.connect(f"{self.folder}/stats")
            stats.sendall(b"show stat\n")
            with stats.makefile() as lines:
                rows = lines.read().splitlines()
        (row,) = [row.split(",") for row in rows if row.startswith("checked,relay")]
        return dict(zip(rows[0].removeprefix("# ").split(","), row, strict=False))


def is_listening(address):
    with socket.socket(socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET) as made:
        return made.connect_ex(str(address) if isinstance(address, Path) else address) == 0


@pytest.fixture(scope="module")
def world():
    with contextlib.ExitStack() as stack:
        yield World(stack)


def ask(client):
    """Ask a web server what it knows; the client is closed then."""
    with client:
        client.settimeout(WAIT)
        client.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
        answer = b""
        while piece := client.recv(65536):
            answer += piece
    head, _, body = answer.decode().partition("\r\n\r\n")
    for line in head.splitlines():
        name, _, value = line.partition(": ")
        if name == "Client":
            return value
    return body


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("server", ["haproxy", "nginx", "apache"])
def test_a_server_knows_the_client_of_relay(world, server, version):
    receive = socket.create_server(("127.0.0.1", 0))
    ended = []
    with relay.Tunnel(
        receive, relay.target(world.receivers[server]), send_proxy=version, on_end=ended.append
    ) as tunnel:
        client = socket.create_connection(tunnel.address)
        own, listening = client.getsockname(), client.getpeername()
        told = ask(client).split()
        tunnel.close(drain=WAIT)
    if server == "apache":
        assert told == ["127.0.0.1"]
    else:
        assert told[:3] == ["127.0.0.1", str(own[1]), str(listening[1])]
    (record,) = ended
    assert record.reason == "done"
    assert told[3:] == ([record.id] if (server, version) == ("haproxy", "v2") else [])


@pytest.mark.parametrize(
    ("server", "version"), [("haproxy", "v1"), ("haproxy", "v2"), ("nginx", "v1"), ("nginx", "v2"), ("apache", "v2")]
)
def test_a_server_serves_a_client_without_an_address(world, server, version, tmp_path):
    receive = relay.listen(f"unix://{tmp_path}/s")
    with relay.Tunnel(receive, relay.target(world.receivers[server]), send_proxy=version) as tunnel:
        client = socket.socket(socket.AF_UNIX)
        client.connect(f"{tmp_path}/s")
        told = ask(client).split()
        tunnel.close(drain=WAIT)
        (record,) = tunnel.recent()
    assert record.reason == "done"
    if server == "apache":
        assert told == ["127.0.0.1"]  # that of relay


def test_haproxy_knows_the_name_that_a_client_over_tls_has_asked_for(world):
    import ssl

    context = ssl.create_default_context(cafile=world.folder / "ca.pem")
    receive = relay.listen(f"tls://127.0.0.1:0?cert={world.folder}/both.pem&alpn=http/1.1")
    with relay.Tunnel(receive, relay.target(f"unix://{world.folder}/names"), send_proxy="v2") as tunnel:
        client = socket.create_connection(tunnel.address, WAIT)
        assert ask(context.wrap_socket(client, server_hostname="localhost")) == "localhost"


@pytest.mark.parametrize("sender", ["v1", "v2", "nginx"])
def test_relay_knows_the_client_of_a_proxy_and_passes_it_on(world, sender):
    client = socket.create_connection(world.senders[sender])
    own, listening = client.getsockname(), client.getpeername()
    told = ask(client).split()
    assert told[:3] == ["127.0.0.1", str(own[1]), str(listening[1])]
    wait_until(lambda: any(record.id == told[3] for record in world.tunnel.recent()))
    record = next(record for record in world.tunnel.recent() if record.id == told[3])
    assert record.peer == own
    assert str(record.identity) == "tcp:127.0.0.1"


def test_relay_knows_the_certificate_that_a_proxy_has_verified(world):
    import ssl

    context = ssl.create_default_context(cafile=world.folder / "ca.pem")
    context.load_cert_chain(world.folder / "alice.pem")
    client = context.wrap_socket(socket.create_connection(world.senders["ssl"]), server_hostname="localhost")
    own = client.getsockname()
    told = ask(client).split()
    assert told[:2] == ["127.0.0.1", str(own[1])]
    wait_until(lambda: any(record.id == told[3] for record in world.tunnel.recent()))
    record = next(record for record in world.tunnel.recent() if record.id == told[3])
    assert str(record.identity) == "tls:alice"
    assert record.identity.certificate.common_name == "alice"
    assert record.identity.port == own[1]


def test_what_a_proxy_tells_of_a_session_reaches_the_target(world):
    import ssl

    from relay.access.proxy_header import ALPN, AUTHORITY, UNIQUE_ID, HeaderReader, SSLEntry

    context = ssl.create_default_context(cafile=world.folder / "ca.pem")
    context.load_cert_chain(world.folder / "alice.pem")
    context.set_alpn_protocols(["http/1.1"])
    receive, target = relay.listen(f"unix://{world.folder}/full"), socket.create_server(("127.0.0.1", 0))
    make_send = relay.tcp(*target.getsockname())
    with target, relay.Tunnel(receive, make_send, accept_proxy=["unix"], send_proxy="v2") as tunnel:
        client = context.wrap_socket(socket.create_connection(world.senders["full"]), server_hostname="localhost")
        target.settimeout(WAIT)
        with client, target.accept()[0] as server:
            server.settimeout(WAIT)
            reader = HeaderReader()
            while reader.header is None:
                seen = server.recv(4096)
                assert seen, "the connection ended within the header"
                reader.feed(seen)
            (record,) = tunnel.connections()
            header = reader.header
            assert header.ssl() == SSLEntry(client.version(), client.cipher()[0], "alice", is_verified=True)
            assert (header.text(ALPN), header.text(AUTHORITY)) == ("http/1.1", "localhost")
            assert record.server_name == "localhost" and str(record.identity) == "tls:alice"
            assert header.text(UNIQUE_ID) == record.unique_id and record.unique_id.startswith("it-")
            assert header.source == client.getsockname()


def test_the_health_checks_of_a_proxy_are_no_clients(world):
    assert world.check()["status"].startswith("UP")
    stats = world.checked.stats()
    assert (stats.accepted, dict(stats.failed)) == (0, {})
    assert world.checked.recent() == []


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_postgresql_behind_a_proxy_gets_no_header(world, version):
    target = relay.target(f"unix://{world.folder}/postgres")
    with relay.Tunnel(socket.create_server(("127.0.0.1", 0)), target, send_proxy=version, timeout=None) as tunnel:
        host, port = tunnel.address
        login = {"user": Postgres.name, "password": PASSWORD, "dbname": "postgres"}
        with psycopg.connect(host=host, port=port, **login) as connection:
            assert connection.execute("select sum(n) from generate_series(1, 1000) n").fetchone() == (500500,)
