"""Every line that the pages about chains and proxies show runs, with the test's servers instead of those named."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from documents import PAGES
from helpers import WAIT, Server
from postgres import PASSWORD

import relay
from relay.addresses.destinations import b32_of
from relay.process import end
from relay.testing import SAMBridge, SSHServer

CHAINS = PAGES["chains"] + PAGES["transports"] + PAGES["websockets"]
# Lines with these have a promise of their own, with the other end that they need.
ELSEWHERE = re.compile(r"wss?://|port:|sni://|redirect://|tor:")
LINES = [
    line
    for line in re.findall(r"^\$ (.*?)(?: +# .*)?$", CHAINS, re.MULTILINE)
    if not (line.startswith("relay ") and ELSEWHERE.search(line))
]
BIN = Path(sys.executable).parent
PAGE = b"the page"


def serve_page(connection):
    """A web server, as far as it is needed."""
    asked = b""
    while b"\r\n\r\n" not in asked and (piece := connection.recv(4096)):
        asked += piece
    connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(PAGE), PAGE))


class Places:
    """The replacements of the names in the pages."""

    def __init__(self, stack, folder, certificates):
        def serve_tls(connection):
            with certificates.server().wrap_socket(connection, server_side=True) as encrypted:
                serve_page(encrypted)
                encrypted.unwrap()

        self.folder = folder
        (folder / "site").mkdir()
        (folder / "site" / "page").write_bytes(PAGE)
        web = stack.enter_context(contextlib.closing(Server(serve_page)))
        app = stack.enter_context(contextlib.closing(Server(serve_page, str(folder / "app.sock"))))
        tls = stack.enter_context(contextlib.closing(Server(serve_tls)))
        self.outer = stack.enter_context(SSHServer(commands=lambda _: True))
        self.inner = stack.enter_context(SSHServer(commands=lambda _: True))
        bridge = stack.enter_context(SAMBridge())
        at_i2p = {}
        for name, address in {"web": web.address, "ssh": self.inner.address}.items():
            tunnel = relay.TunnelServer("", address[1], bridge.sam, host=address[0])
            at_i2p[name] = stack.enter_context(tunnel).dest
            # The first client opens the spare descriptor of the tunnel, which outlives the tests.
            with relay.connect(f"i2p://{at_i2p[name]}?sam={bridge.sam}", timeout=WAIT) as client:
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                assert client.recv(1)
        bridge.addressbook["name.i2p"] = at_i2p["web"]
        self.name = b32_of(at_i2p["ssh"])
        self.router = f"i2p:?sam={bridge.sam}"
        socks, http = (stack.enter_context(listening(["socks", on])) for on in (":0", "http://:0"))
        self.password, both, ca = folder / "pass", folder / "both.pem", certificates.ca
        self.password.touch(0o600)
        self.password.write_text("secret")
        both.write_bytes(certificates.cert.read_bytes() + certificates.key.read_bytes())
        over_tls = f"https://127.0.0.1:0?cert={both}"
        login = ["--user", "me", "--password-file", str(self.password)]
        https = stack.enter_context(listening(["socks", over_tls, *login])).rpartition(":")[2]
        self.ca = str(ca)
        self.web = "{}:{}".format(*web.address)
        port = web.address[1]
        self.names = {
            "ssh://me@x.b32.i2p": self.inner.url.replace("{}:{}".format(*self.inner.address[:2]), self.name),
            "ssh://me@outer": self.outer.url,
            "ssh://me@inner": self.inner.url,
            "tls://db.internal:8443?ca=db.pem": f"tls://localhost:{tls.address[1]}?ca={certificates.ca}",
            "db.internal:5432": self.web,
            "db1.internal:5432": "127.0.0.1:1",  # no program listens there
            "db2.internal:5432": self.web,
            "ssh://me@bastion": self.outer.url,
            "i2p:?sam=127.0.0.1:7656": self.router,
            "socks5://proxy:1080": f"socks5://{socks}",
            "http://proxy:3128": f"http://{http}",
            "unix:///run/app.sock": f"unix://{app.address}",
            "docker exec -i web nc 127.0.0.1 80": f"nc 127.0.0.1 {port}",
            "http://127.0.0.1:3128": "http://127.0.0.1:0",
            "https://0.0.0.0:8443?cert=proxy.pem": over_tls,
            "https://me@proxy.example:8443?password_file=pass": f"https://me@localhost:{https}?ca={ca}"
            f"&password_file={self.password}",
            "db:5432": self.web,
            "*.internal": "127.0.0.1",
            "10.0.0.0/8": "127.0.0.0/8",
        }

    def with_name(self, name, place):
        """The same with another place for a name."""
        others = copy.copy(self)
        others.names = {**self.names, name: place}
        return others

    def put_in(self, word):
        """A word of a command with the test's own places in it."""
        in_a_shell = word.startswith("ProxyCommand=")
        for name, place in self.names.items():
            word = word.replace(name, shlex.quote(place).replace("%", "%%") if in_a_shell else place)
        return {"i2p:": self.router, "pass": str(self.password)}.get(word, word)


@pytest.fixture(scope="module")
def places(tmp_path_factory, certificates, spawner_thread):
    with contextlib.ExitStack() as stack:
        yield Places(stack, tmp_path_factory.mktemp("tour"), certificates)


@contextlib.contextmanager
def listening(words):
    """Run a command that listens; gives where."""
    with subprocess.Popen([BIN / "relay", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            said = process.stdout.readline().decode()
            found = re.match(r"listening on (127\.0\.0\.1:\d+) ", said)
            assert found, said
            yield found[1]
        finally:
            end(process, WAIT)


def fetch(url, proxy=None):
    handler = urllib.request.ProxyHandler({"http": proxy} if proxy else {})
    with urllib.request.build_opener(handler).open(url, timeout=60) as answer:
        return answer.read()


def over_ssh(places, command, host):
    """``ssh`` to a server of the test, as the page has it; the name of the server is kept where it is at I2P."""
    server = places.outer if host == "outer" else places.inner
    address, port = server.address[:2]
    known = places.folder / f"known_{host}"
    known.write_text(f"alias {server.host_key.get_name()} {server.host_key.get_base64()}\n")
    options = ["-F", "none", "-i", str(server.keyfile), "-p", str(port), "-o", "StrictHostKeyChecking=yes"]
    options += ["-o", f"UserKnownHostsFile={known}", "-o", "HostKeyAlias=alias", "-o", "BatchMode=yes"]
    *given, user_and_host = command
    given = [
        word.replace("%h:%p", f"%h:%p --via '{places.router}'") if host.endswith("i2p") else word for word in given
    ]
    name = places.name if host.endswith("i2p") else address
    return [*given, *options, *([f"{server.user}@{name}"] if user_and_host else [])]


def test_forward(line, places):
    words = [places.put_in(word) for word in shlex.split(line)]
    with listening([words[1], ":0", *words[3:], "--drain", "0"]) as address:
        assert fetch(f"http://{address}/") == PAGE


def test_socks(line, places):
    words = [places.put_in(word) for word in shlex.split(line)]
    on = words[2] if words[2].startswith("http") else ":0"
    with listening([words[1], on, *words[3:], "--sam", places.router.partition("=")[2], "--drain", "0"]) as address:
        proxy = f"http://{address}" if on != ":0" else f"socks5h://{address}"
        if on.startswith("https"):
            proxy = f"https://me:secret@{address}"
        for site in [places.web, *(["name.i2p"] if "--via" not in words else [])]:
            curl = ["curl", "--disable", "--silent", "--show-error", "--fail", "--proxytunnel", "--proxy", proxy]
            curl += ["--proxy-cacert", places.ca]
            assert subprocess.run([*curl, f"http://{site}/"], capture_output=True, check=True).stdout == PAGE


def test_pipe(line, places):
    words = [places.put_in(word) for word in shlex.split(line)]
    *command, less, _, more, _ = words
    assert (less, more) == ("<", ">")
    done = subprocess.run(
        [BIN / command[0], *command[1:]], input=b"GET / HTTP/1.0\r\n\r\n", capture_output=True, check=True
    )
    assert done.stdout.endswith(PAGE) and done.stderr == b""


def test_ssh(line, places):
    words = [places.put_in(word) for word in shlex.split(line)]
    command = [*over_ssh(places, words, words[-1].partition("@")[2]), "echo hello; cat"]
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(command, input=PAGE, capture_output=True, env=environment, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"hello\n" + PAGE, b"")


def test_rsync(line, places, tmp_path):
    command, flag, shell, *more = shlex.split(line)
    assert (flag, *more) == ("-e", "-a", "me@inner:site/", "site/")
    ssh = over_ssh(places, [*map(places.put_in, shlex.split(shell)), ""], "inner")
    source = f"{places.inner.user}@127.0.0.1:{places.folder}/site/"
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    subprocess.run(
        [command, "-e", shlex.join(ssh), "-a", source, f"{tmp_path}/site/"], env=environment, timeout=60, check=True
    )
    assert (tmp_path / "site" / "page").read_bytes() == PAGE


def program_of(places):
    """The page's program, with the test's own places in it."""
    (text,) = re.findall(r"^```python\n(.*?)^```", CHAINS, re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    exec(places.put_in(text.replace("web.internal:80", places.web)), names)
    return names


def test_the_programs_page(places):
    names = program_of(places)
    assert asyncio.run(names["page"]()).endswith(PAGE)


def test_the_programs_rows(places, database):
    for name, place in {
        "db.internal:5432": database.address,
        'user="me", dbname="app"': f'user="{database.name}", password="{PASSWORD}", dbname="postgres"',
        "select * from orders": "select 7",
    }.items():
        places = places.with_name(name, place)
    names = program_of(places)
    assert names["rows"]() == [(7,)]


def pytest_generate_tests(metafunc):
    kind = metafunc.function.__name__.removeprefix("test_")
    if "line" in metafunc.fixturenames:
        lines = [line for line in LINES if line.removeprefix("relay ").startswith(f"{kind} ")]
        metafunc.parametrize("line", lines, ids=range(len(lines)))


def test_there_are_lines_of_each_kind_and_no_others():
    kinds = [line.removeprefix("relay ").partition(" ")[0] for line in LINES]
    assert {*kinds} == {"forward", "socks", "pipe", "ssh", "rsync"}
    assert len(kinds) >= 14
    assert shutil.which("curl") and shutil.which("rsync") and socket.has_ipv6 is not None
