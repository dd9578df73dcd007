"""Each pair of commands of the page for users of other programs does the same; of all others relay's half works."""

import contextlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import sysconfig

import pytest
from command_rig import commands, run, tunnel
from documents import PAGES
from helpers import WAIT, Server, TLSEnd, echo, is_gone, receive_exactly, reserved_port, wait_until
from proxy_world import tinyproxy

HOST, TEXT = "127.0.0.1", b"there and back"
PATH = f"{sysconfig.get_path('scripts')}:{os.environ.get('PATH', '')}:/usr/sbin"
CELLS = [
    [re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split(" | ")]
    for line in PAGES["coming-from"].splitlines()
    if line.startswith("| ")
]
COMMANDS = [(old[0], new[0]) for old, new in CELLS if old and new and new[0].startswith(("relay ", "--"))]
PAIRS = [pair for pair in COMMANDS if pair[0].split()[0] in ("ssh", "autossh", "sshtunnel", "socat")]
HAPROXY = [
    (old, new[0])
    for old, new in filter(all, CELLS)
    if old[0].startswith(("bind ", "server ")) and new[0].startswith("relay forward")
]
OPTIONS = [(old, new) for old, new in CELLS if new and new[0].startswith("?")]  # of ssh and of its server's address
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
        (folder / "both.pem").write_bytes(certificates.cert.read_bytes() + certificates.key.read_bytes())
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
            (r"\bboth\.pem", f"{folder}/both.pem"),
            (r"/run/", f"{folder}/"),
            (r"ssh://me@\w+(\??)", lambda found: server.url + found[1].replace("?", "&")),
            (r"^(ssh|autossh -M 0) ", rf"\1 -F {folder}/config "),
            (r"^(sshtunnel) -U me", rf"\1 -n -p {server.port} -K {server.keyfile} -c {os.devnull} -U me"),
            (r"-- bastion$", f"-- {HOST}"),
            (r"\bme\b", server.user),
        ]

    def here(self, text):
        """A text of the page, with what is here."""
        for pattern, instead in self._changes:
            text = re.sub(pattern, instead, text)
        return text

    def words(self, command):
        """The words of a command, with what is here."""
        return shlex.split(self.here(command))

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


@pytest.mark.parametrize(("lines", "new"), HAPROXY)
def test_lines_of_haproxy_do_the_same(places, lines, new):
    words = {line.split()[0] for line in lines}
    more = [line for line in ("bind 127.0.0.1:8080", "server a web:80") if line.split()[0] not in words]
    file = places.folder / "haproxy.cfg"
    limits = [f"timeout {one} 60s" for one in ("connect", "client", "server")]
    body = "\n    ".join(["mode tcp", *limits, *map(places.here, [*lines, *more])])
    file.write_text(f"listen page\n    {body}\n")
    for command in f"haproxy -db -f {file}", new:
        places.run(command, shlex.split(new)[2])


@pytest.mark.parametrize(("old", "new"), OPTIONS)
def test_parameters_of_ssh_are_taken_by_both(tmp_path, old, new):
    file = tmp_path / "FILE"
    file.touch(0o600)
    for option in (one.replace("FILE", str(file)) for one in old if "PORT" not in one):
        done = subprocess.run(["ssh", "-GT", *shlex.split(option), "host"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), option
    parameters = "&".join(one[1:] for one in new if one.startswith("?")).replace("FILE", str(file))
    servers = [one for one in new if "://" in one] or ["ssh://bastion"]
    done = run("check", "--print", "--", "forward", ":0", "db:1", "--via", f"{servers[0]}?{parameters}")
    assert (done.returncode, done.stderr) == (0, "")
    assert parameters.partition("=")[0] in done.stdout


def test_one_file_takes_several_forwards_and_shows_them(places):
    """``relay up``, ``relay service install``, and the commands of ``relay ctl`` that the page names."""
    named = {one for _, new in filter(all, CELLS) for one in new if re.match("relay (ctl|service|up)", one)}
    assert named == {"relay up", "relay service install"} | {
        f"relay ctl {one}" for one in ("connections", "carriers", "reload")
    }
    for listen in "5432", "8080":
        places.run("ssh -N -L 5432:db:5433 -L 8080:web:80 me@bastion", listen)
    (via,) = places.words("ssh://me@bastion")
    file, control = places.folder / "relay.toml", places.folder / "control"
    tunnels = "".join(
        tunnel(name, *places.words(target), f'via = ["{via}"]', listen=places.words(listen)[0])
        for name, listen, target in (("db", "5432", "db:5433"), ("web", "8080", "web:80"))
    )
    file.write_text(f'control = "{control}"\n{tunnels}')
    file.chmod(0o600)
    home = {**os.environ, "HOME": str(places.folder), "XDG_CONFIG_HOME": str(places.folder / "settings")}
    done = run("service", "install", "--user", "--config", str(file), env=home)
    assert done.returncode == 0 and list(places.folder.glob("settings/systemd/user/relay.service")), done.stderr

    def control_it(word):
        done = run("ctl", "--control", str(control), word)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    with commands() as start, contextlib.ExitStack() as stack:
        command = start(str(file), command="up")
        for listen in "5432", "8080":
            where = (HOST, int(places.words(listen)[0]))
            wait_until(lambda where=where: not is_gone(where))
            client = stack.enter_context(socket.create_connection(where, WAIT))
            client.sendall(TEXT)
            assert receive_exactly(client, len(TEXT)) == TEXT
        shown = control_it("connections")
        assert "db " in shown and "web " in shown
        assert " up " in control_it("carriers")
        file.write_text(file.read_text().replace("[tunnels.web]", "[tunnels.site]"))
        assert "site" in control_it("reload")
        command.process.terminate()


def test_its_v_logs_a_line_for_each_connection(places):
    with commands() as start:
        command = start(*places.words("8080 web:80 -v"))
        where = (HOST, int(places.words("8080")[0]))
        wait_until(lambda: not is_gone(where))
        with socket.create_connection(where, WAIT) as client:
            client.sendall(TEXT)
            assert receive_exactly(client, len(TEXT)) == TEXT
        command.hear("done after")


def test_all_other_commands_are_commands(places):
    (places.folder / "friends.txt").write_text("")
    for command in OTHERS:
        words = places.words(command if command.startswith("relay") else f"relay forward 8080 web:80 {command}")
        done = run("check", "--print", "--", *words[1:], cwd=places.folder)
        assert (done.returncode, done.stderr) == (0, ""), command


def test_it_shows_commands_of_each_tool():
    assert {old.split()[0] for old, _ in PAIRS} == {"ssh", "autossh", "sshtunnel", "socat"}
    assert len(PAIRS) >= 18 and len(OTHERS) >= 20 and len(HAPROXY) == 3 and len(OPTIONS) == 4
