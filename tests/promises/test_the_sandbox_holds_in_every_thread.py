"""With ``sandbox = "on"`` a relay serves, reloads and logs as before, and no thread of it reaches anything else."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from command_rig import buffered
from helpers import WAIT, receive_exactly, wait_until
from sandbox_rig import needs_ports

import relay
from relay.testing import SAMBridge

pytestmark = needs_ports

PROBE = Path(__file__).parents[1] / "support" / "sandbox_probe.py"
FORBIDDEN = {"read": "EACCES", "write": "EACCES", "connect": "EACCES"}

# Each kind of thread: SSH, the resolver, TLS, I2P, the status server, the access log.
FILE = """
sandbox = "on"
status = "127.0.0.1:0"
control = "run/control.sock"
log_file = "log/access.log"
[hops]
bastion = "{bastion}"
[tunnels.ssh]
listen = "127.0.0.1:0"
target = "{target}"
via = ["bastion"]
[tunnels.names]
listen = "unix://{folder}/run/names.sock"
target = "localhost:{port}"
[tunnels.tls]
listen = "tls://127.0.0.1:0?cert=tls/cert.pem&key=tls/key.pem"
target = "{target}"
[tunnels.site]
listen = "i2p:?sam={sam}"
target = "{target}"
keys = "keys/site.dat"
"""
# ssh -G reads it inside.
CONFIG = "StrictHostKeyChecking accept-new\nUserKnownHostsFile {}/ssh/known_hosts\n"
MORE = """
[tunnels.more]
listen = "127.0.0.1:0"
target = "{}"
"""


class Running:
    """A ``relay up`` that runs, the lines that it prints, and the file."""

    def __init__(self, file, report, secret, port):
        self.file = file
        words = [sys.executable, str(PROBE), str(report), str(secret), str(port), "up", str(file)]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen(words, text=True, env=buffered(), **pipes)
        self.said = []

    def hear(self, words):
        """Return the first line with these words that is printed or was printed."""
        found = next((line for line in self.said if words in line), None)
        while found is None:
            line = self.process.stdout.readline()
            assert line, f"{words!r} is not in {self.said}"
            self.said.append(line)
            found = line if words in line else None
        return found

    def place(self, name):
        return self.hear(f"{name}: listening on").partition("listening on ")[2].partition(" → ")[0]

    def port(self, name):
        return int(self.place(name).rpartition(":")[2])

    def reload(self, text, words):
        """Replace the file as editors do, reload, and return the line with some words."""
        self.said.clear()
        fresh = self.file.with_suffix(".new")
        fresh.touch(0o600)
        fresh.write_text(text)
        os.replace(fresh, self.file)
        self.process.send_signal(signal.SIGHUP)
        return self.hear(words)


def asks(connected):
    """Send a text through a connection, and return what comes back."""
    with connected as client:
        client.sendall(b"ping")
        return receive_exactly(client, 4)


def over_tls(port, certificates):
    bare = socket.create_connection(("127.0.0.1", port), WAIT)
    return certificates.client().wrap_socket(bare, server_hostname="localhost")


def over_unix(path):
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    return client


@pytest.fixture
def folder(tmp_path, certificates):
    """The folder of the file, with those that it names."""
    made = tmp_path / "relay"
    for name in ("run", "log", "tls", "keys", "ssh", "elsewhere"):
        (made / name).mkdir(mode=0o700, parents=True)
    shutil.copy(certificates.cert, made / "tls" / "cert.pem")
    shutil.copy(certificates.key, made / "tls" / "key.pem")
    return made


@pytest.fixture
def up(tmp_path, folder, echo_server, ssh_server, listener):
    """The relay, its report, and the text of its file; a client of the other listener is forbidden."""
    secret, report = tmp_path / "secret", tmp_path / "report"
    secret.write_text("no relay needs this")
    host, port = echo_server.address
    (folder / "ssh" / "config").write_text(f"Include {folder}/ssh/more\n")
    (folder / "ssh" / "more").write_text(CONFIG.format(folder))
    options = f"keyfile={quote(ssh_server.keyfile)}&config={quote(str(folder / 'ssh' / 'config'))}"
    with SAMBridge() as router:
        text = FILE.format(
            bastion=f"{ssh_server.url.partition('?')[0]}?{options}",
            target=f"{host}:{port}",
            port=port,
            folder=folder,
            sam=router.sam,
        )
        file = folder / "relay.toml"
        file.touch(0o600)
        file.write_text(text)
        running = Running(file, report, secret, listener.getsockname()[1])
        with running.process:
            try:
                yield running, report, text, router
            finally:
                running.process.kill()


def test_a_relay_works_as_before_and_reaches_nothing_else(up, folder, certificates, echo_server, listener):
    running, report, text, router = up
    said = running.hear("sandbox: on")
    assert "connects to the ports 53, " in said
    assert str(folder / "keys") in said
    running.hear("4 of 4 tunnels listen")
    running.hear("published")
    ssh_port, tls_port = running.port("ssh"), running.port("tls")
    site, status = running.place("site"), running.hear("status server at").partition("at ")[2].strip()

    assert asks(socket.create_connection(("127.0.0.1", ssh_port), WAIT)) == b"ping"
    assert "ssh-ed25519" in (folder / "ssh" / "known_hosts").read_text()
    assert asks(over_unix(folder / "run" / "names.sock")) == b"ping"
    assert asks(over_tls(tls_port, certificates)) == b"ping"
    assert asks(relay.connect(f"i2p://{site}?sam={router.sam}")) == b"ping"
    assert httpx.get(f"{status}/readyz", timeout=WAIT).status_code == 200
    assert "process_open_fds" in httpx.get(f"{status}/metrics", timeout=WAIT).text

    # A file that was replaced; a certificate that was renewed; a log file that was rotated.
    for name in ("cert.pem", "key.pem"):
        shutil.copy(folder / "tls" / name, folder / "tls" / "new")
        os.replace(folder / "tls" / "new", folder / "tls" / name)
    more = text + MORE.format(echo_server.address[1])
    assert "2 of 5 tunnels changed" in running.reload(more, "tunnels changed")
    assert asks(over_tls(tls_port, certificates)) == b"ping"
    os.rename(folder / "log" / "access.log", folder / "log" / "access.log.1")
    running.process.send_signal(signal.SIGUSR1)
    running.hear("the log file is open again")
    assert asks(socket.create_connection(("127.0.0.1", running.port("more")), WAIT)) == b"ping"
    wait_until(lambda: b"more" in (folder / "log" / "access.log").read_bytes())

    # What needs a restart changes nothing.
    port = listener.getsockname()[1]
    line = running.reload(text + MORE.format(port), "reload: more")
    assert line.endswith(f" ERROR reload: more: the sandbox does not let relay connect to port {port}; restart relay\n")
    running.hear("reload: nothing has changed")
    line = running.reload(more.replace("log/access.log", "elsewhere/access.log"), "reload: control")
    assert " ERROR reload: control, status, log_file and state: the sandbox does not let relay write to " in line
    running.hear("reload: nothing has changed")
    assert asks(socket.create_connection(("127.0.0.1", ssh_port), WAIT)) == b"ping"

    running.process.send_signal(signal.SIGTERM)
    running.process.stdout.read()
    assert running.process.wait(WAIT) == 0
    assert [path.name for path in (folder / "run").iterdir()] == []
    before, *inside = map(json.loads, report.read_text().splitlines())
    assert before == {"thread": "before", "read": "done", "write": "done", "connect": "done"}
    names = {found.pop("thread") for found in inside}
    assert [found for found in inside if found != FORBIDDEN] == []
    assert {"main", "relay-log", "relay-access-log", "relay-io", "relay-operations", "relay-spawner"} <= names
