"""Each pair of commands of the page for users of other programs does the same; all others of it are commands, too."""

import contextlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import sysconfig

import pytest
from command_rig import run
from documents import PAGES
from helpers import WAIT, Server, TLSEnd, echo, is_gone, receive_exactly, reserved_port, wait_until
from proxy_world import tinyproxy

HOST, TEXT = "127.0.0.1", b"there and back"
PATH = f"{sysconfig.get_path('scripts')}:{os.environ.get('PATH', '')}"
CELLS = [
    [re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split(" | ")]
    for line in PAGES["coming-from"].splitlines()
    if line.startswith("| ")
]
COMMANDS = [(old[0], new[0]) for old, new in CELLS if old and new and new[0].startswith(("relay ", "--"))]
PAIRS = [pair for pair in COMMANDS if pair[0].split()[0] in ("ssh", "autossh", "sshtunnel", "socat")]
OTHERS = [new for old, new in COMMANDS if (old, new) not in PAIRS and not re.match("relay (ctl|service|up)", new)]


class Places:
    """Replacements of the names on the page: hosts, ports, files."""

    def __init__(self, stack, folder, certificates, server, proxy):
        def serve(handler, *where):
            return stack.enter_context(contextlib.closing(Server(handler, *where))).address[1]

        def echo_tls(connection):
            with certificates.server().wrap_socket(connection, server_side=True) as encrypted:
                echo(encrypted)

        self.stack, self.folder, self.certificates = stack, folder, certificates
        ports = {one: stack.enter_context(reserved_port()) for one in ("5432", "8080", "8443", "1080")}
        serve(echo, str(folder / "app.sock"))
        target = f"{HOST}:{serve(echo)}"
        login = {"HostName": HOST, "Port": server.port, "User": server.user, "IdentityFile": server.keyfile}
        login |= {"UserKnownHostsFile": server.known_hosts, "IdentitiesOnly": "yes", "BatchMode": "yes"}
        (folder / "config").write_text("Host *\n" + "".join(f"    {name} {value}\n" for name, value in login.items()))
        self._changes = [
            (r"PROXY:proxy:(\S+),proxyport=3128", rf"PROXY:{HOST}:\1,proxyport={proxy.port}"),
            (r"proxy:3128", f"{HOST}:{proxy.port}"),
            (r"\b(db:5433|web:80|127\.0\.0\.1:8000)\b", target),
            (r"secure:443", f"localhost:{serve(echo_tls)}"),
            (r"\b(5432|8080|8443|1080)\b", lambda found: str(ports[found[0]])),
            (r"\b(ca|cert|key)\.pem", lambda found: str(getattr(certificates, found[1]))),
            (r"/run/", f"{folder}/"),
            (r"ssh://me@\w+(\??)", lambda found: server.url + found[1].replace("?", "&")),
            (r"^(ssh|autossh -M 0) ", rf"\1 -F {folder}/config "),
            (r"^(sshtunnel) -U me", rf"\1 -n -p {server.port} -K {server.keyfile} -c {os.devnull} -U me"),
            (r"-- bastion$", f"-- {HOST}"),
            (r"\bme\b", server.user),
        ]

    def words(self, command):
        """The words of a command, with what is here."""
        for pattern, instead in self._changes:
            command = re.sub(pattern, instead, command)
        return shlex.split(command)

    def run(self, command, listen):
        """Run a command, and send bytes through it."""
        words = self.words(command)
        if shutil.which(words[0], path=PATH) is None:
            pytest.skip(f"there is no {words[0]}")
        output = self.folder / "output"
        with output.open("w") as errors:
            options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors, "cwd": self.folder}
            process = subprocess.Popen(words, env={**os.environ, "PATH": PATH}, **options)
        with process:
            try:
                if listen is None:
                    process.stdin.write(TEXT)
                    process.stdin.flush()
                    assert process.stdout.read(len(TEXT)) == TEXT, output.read_text()
                else:
                    self._exchange(listen, process, output)
            finally:
                process.terminate()
        if listen is not None and (place := self._where(listen)[1])[0] == HOST:
            wait_until(lambda: is_gone(place))  # a server of SSH listens for a moment longer

    def _where(self, listen):
        kind, _, place = self.words(listen)[0].partition("?")[0].rpartition("://")
        return kind, place if kind == "unix" else (HOST, int(place.rpartition(":")[2]))

    def _exchange(self, listen, process, output):
        kind, where = self._where(listen)
        wait_until(lambda: process.poll() is not None or (not is_gone(where) if kind != "unix" else _answers(where)))
        assert process.poll() is None, output.read_text()
        with socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET) as client:
            client.settimeout(WAIT)
            client.connect(where)
            if kind == "socks":
                host, port = self.words("web:80")[0].split(":")
                client.sendall(b"\x05\x01\x00\x05\x01\x00\x03" + bytes([len(host)]) + host.encode())
                client.sendall(int(port).to_bytes(2))
                assert receive_exactly(client, 12)[3] == 0
            stream = TLSEnd(client, self.certificates.client()) if kind == "tls" else client
            stream.sendall(TEXT)
            assert receive_exactly(stream, len(TEXT)) == TEXT, output.read_text()


def _answers(path):
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


@pytest.fixture
def places(tmp_path, certificates, sshd, spawner_thread):
    proxy = tinyproxy(tmp_path).start()
    with contextlib.closing(contextlib.ExitStack()) as stack:
        stack.callback(proxy.stop)
        yield Places(stack, tmp_path, certificates, sshd, proxy)


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_both_commands_do_the_same(places, old, new):
    _, kind, listen, *_ = words = shlex.split(new)
    if kind == "expose":
        listen = words[-1].rpartition("listen=")[2]
    for command in old, new:
        places.run(command, None if kind == "pipe" else f"socks://{listen}" if kind == "socks" else listen)


def test_all_other_commands_are_commands(places):
    (places.folder / "friends.txt").write_text("")
    for command in OTHERS:
        words = places.words(command if command.startswith("relay") else f"relay forward 8080 web:80 {command}")
        done = run("check", "--print", "--", *words[1:], cwd=places.folder)
        assert (done.returncode, done.stderr) == (0, ""), command


def test_it_shows_commands_of_each_tool():
    assert {old.split()[0] for old, _ in PAIRS} == {"ssh", "autossh", "sshtunnel", "socat"}
    assert len(PAIRS) >= 18 and len(OTHERS) >= 20
