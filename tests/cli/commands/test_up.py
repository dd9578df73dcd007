"""``relay up``: many tunnels of one file, as its users run it."""

import json
import os
import re
import signal
import socket
from pathlib import Path

import pytest
from command_rig import commands, run
from helpers import WAIT, ending, exchange, is_gone, makes, receive_all, send_and_end, wait_until

from relay.cli.commands import up
from relay.config import read
from relay.testing import SAMBridge

LINE = re.compile(r"(\S+): listening on (\S+):(\d+)( on \S+)? → (.+)\n")


class Fleet:
    """A ``relay up`` that runs.

    :param make: starts a command.
    :param path: of the file.
    """

    def __init__(self, make, path, *arguments, **options):
        self.command = make(str(path), *arguments, command="up", **options)
        self.process = self.command.process
        self.places = {}

    def wait_for(self, *names):
        """Wait until these tunnels listen, by what it prints."""
        while not self.places.keys() >= set(names):
            line = self.process.stdout.readline()
            match = LINE.fullmatch(line)
            assert match, f"{line!r}, then {self.process.communicate(timeout=WAIT)}"
            self.places[match[1]] = match[2], int(match[3])
        return [self.places[name] for name in names]


@pytest.fixture
def make_file(tmp_path):
    def make(text, mode=0o600):
        path = tmp_path / "relay.toml"
        path.write_text(text)
        path.chmod(mode)
        return path

    return make


@pytest.fixture
def start(make_file):
    with commands() as make:
        yield lambda text, *arguments, **options: Fleet(make, make_file(text), *arguments, **options)


@pytest.fixture
def connect():
    yield from makes(lambda address: socket.create_connection(address, timeout=WAIT))


def tunnel(name, listen, target, *more):
    return "\n".join(
        [f"[tunnels.{name}]", f"listen = {json.dumps(listen)}", f"target = {json.dumps(target)}", *more, ""]
    )


def says_hello(client):
    send_and_end(client, b"hello")
    return receive_all(client) == b"hello"


def socks_request(port):
    return b"\5\1\0\5\1\0\3\x09localhost" + port.to_bytes(2, "big")


def test_every_kind_of_tunnel_in_one_file(start, connect, target, echo_server, ssh_server):
    text = f'[hops]\nbastion = "{ssh_server.url}"\n'
    text += tunnel("plain", ":0", target) + tunnel("over", ":0", target, 'via = ["bastion"]')
    text += tunnel("published", ssh_server.url, target)
    text += '[tunnels.proxy]\nlisten = "socks5://127.0.0.1:0"\nrule = ["127.0.0.1=refuse", "*=bastion"]\n'
    fleet = start(text, "-v")
    plain, over, published, proxy = fleet.wait_for("plain", "over", "published", "proxy")
    for place in (plain, over, published):
        assert says_hello(connect(place))
    client = connect(proxy)
    send_and_end(client, socks_request(echo_server.address[1]) + b"hello")
    assert receive_all(client).endswith(b"hello")
    assert ssh_server.logins == 1, "all that goes over one server shares a connection"
    status, said = fleet.command.end()
    assert status == 0
    assert "INFO 4 of 4 tunnels listen\n" in said
    assert re.search(rf"INFO over: 127\.0\.0\.1:\d+ → {target}: done", said)
    assert "4 connections, " in said.splitlines()[-1]


def test_a_password_in_a_file_of_ones_own(start, connect, echo_server):
    proxy = '[tunnels.{}]\nlisten = "socks5://{}127.0.0.1:0"\n'
    fleet = start(proxy.format("keys", "") + 'user = "me"\npassword = "secret"\n' + proxy.format("url", "me:secret@"))
    greeting, login = b"\5\1\2", b"\1\2me\6secret"
    for place in fleet.wait_for("keys", "url"):
        client = connect(place)
        send_and_end(client, greeting + login + socks_request(echo_server.address[1])[3:] + b"hello")
        assert receive_all(client).endswith(b"hello")
        client = connect(place)
        send_and_end(client, greeting + b"\1\2me\5wrong")
        assert receive_all(client) == b"\5\2\1\1"
    status, said = fleet.command.end()
    assert status == 0
    assert "secret" not in said


def test_one_that_cannot_start_stops_no_other(start, connect, target):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        fleet = start(
            tunnel("bad", port, target) + tunnel("good", ":0", target) + tunnel("no", "tls://:0?cert=x", target)
        )
        [good] = fleet.wait_for("good")
        assert says_hello(connect(good))
        fleet.command.hear("tunnels listen")
        status, said = fleet.command.end()
    assert status == 0
    lines = said.splitlines()
    assert f"relay: bad: 127.0.0.1:{port}: Address already in use; another program listens there" in said
    assert "relay: no: x: cert: No such file or directory; check the path" in lines
    assert sum("INFO 1 of 3 tunnels listen; 2 do not" in line for line in lines) == 1
    assert len(lines) == 5, said  # two failures, the count, the signal, the sum


@pytest.mark.parametrize("where", ["the tunnel", "the defaults"])
def test_one_that_is_required_ends_all(start, target, where):
    bad, defaults = ("required = true", "") if where == "the tunnel" else ("", "[defaults]\nrequired = true\n")
    fleet = start(defaults + tunnel("good", ":0", target) + tunnel("bad", "tls://:0?cert=x", target, bad))
    status, said = fleet.command.wait()
    assert status == 2
    assert "relay: bad: x: cert: No such file or directory; check the path" in said.splitlines()


def test_where_none_can_start_it_ends(start, target):
    status, said = start(tunnel("a", "tls://:0?cert=x", target) + tunnel("b", "tls://:0?cert=y", target)).command.wait()
    assert status == 2
    assert said.splitlines()[-2:][0] == "relay: there is no tunnel left"


def test_a_hop_that_refuses_us_ends_the_tunnels_over_it_and_no_others(start, connect, make_ssh_server, target):
    server, other = make_ssh_server(), make_ssh_server()
    wrong = server.url.replace(server.keyfile, other.keyfile)
    text = f'[hops]\nwrong = "{wrong}"\nright = "{other.url}"\n'
    for name in ("one", "two"):
        text += tunnel(name, ":0", target, 'via = ["wrong"]')
    fleet = start(text + tunnel("good", ":0", target, 'via = ["right"]'))
    one, two, good = fleet.wait_for("one", "two", "good")
    for name in ("one", "two"):
        assert re.match(r"relay: (one|two): ssh://\S+: ", fleet.command.hear("relay: ")), name
    for address in (one, two):  # a child of relay may have a copy of the listener until it runs its program
        wait_until(lambda address=address: is_gone(address))
    assert says_hello(connect(good))
    status, said = fleet.command.end()
    assert status == 0
    assert sum(line.startswith("relay: ") for line in said.splitlines()) == 2, said
    assert len({name for name, _ in server.attempts}) == 1 and server.logins == 0


def test_a_server_that_cannot_be_reached_yet_is_tried_again(start, connect, make_ssh_server, target):
    server = make_ssh_server()
    server.stop()
    fleet = start(tunnel("late", server.url, target) + tunnel("good", ":0", target))
    fleet.wait_for("good")
    assert "connection refused" in fleet.command.hear("relay: late: ")
    server.start()
    [late] = fleet.wait_for("late")
    assert says_hello(connect(late))
    status, said = fleet.command.end()
    assert status == 0
    assert said.count("relay: late: ") == 1, said


def test_one_that_is_tried_again_ends_with_the_signal(start, make_ssh_server, target):
    server = make_ssh_server()
    server.stop()
    fleet = start(tunnel("late", server.url, target) + tunnel("good", ":0", target))
    fleet.command.hear("1 of 2 tunnels listen; 1 do")
    assert fleet.command.end()[0] == 0


@pytest.mark.parametrize("where", ["listener", "target"])
def test_fail_fast_ends_all_where_a_server_cannot_be_reached(start, make_ssh_server, target, where):
    server = make_ssh_server()
    server.stop()
    late = (
        tunnel("late", server.url, target)
        if where == "listener"
        else tunnel("late", ":0", target, f"via = ['{server.url}']")
    )
    status, said = start(late + tunnel("good", ":0", target), "--fail-fast").command.wait()
    assert status == 1
    assert "relay: late: ssh://" in said and "trying again" not in said


def test_a_router_that_comes_up_later(start, target):
    with SAMBridge() as router:
        router.kill()
        at = f"i2p:?sam={router.sam}"
        fleet = start(tunnel("at", at, target) + tunnel("to", ":0", f"i2p://name.i2p?sam={router.sam}"))
        fleet.command.hear("2 tunnels listen; 1 do")
        fleet.command.hear("WARNING i2p:")
        router.restart()
        line = fleet.process.stdout.readline()
        while "at: listening on" not in line:
            assert line.startswith("to: listening on"), line
            line = fleet.process.stdout.readline()
        fleet.command.hear(": connected")
        assert fleet.command.end()[0] == 0


def until_gone(address):
    """Listening ends soon, but after the line that says so."""
    wait_until(lambda: is_gone(address))


@pytest.mark.parametrize(
    ("path", "problem"),
    [("unix:///c.sock", "control socket unix:///c.sock: that is an address; write the path alone"), ("", "is empty")],
)
def test_a_control_socket_is_a_path(make_file, path, problem):
    done = run("up", str(make_file(tunnel("a", ":0", "h:1"))), "--control", path)
    assert done.returncode == 2
    assert problem in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["up", "forward"])
def test_the_first_signal_of_three_begins_a_shutdown_delay(make_file, connect, listener, tmp_path, command):
    place = "{}:{}".format(*listener.getsockname())
    words = [str(make_file(tunnel("a", ":0", place)))] if command == "up" else [":0", place]
    control = str(tmp_path / "c.sock")
    with commands() as make:
        made = make(*words, "--shutdown-delay", "10m", "--control", control, command=command)
        line = made.process.stdout.readline()
        address = "127.0.0.1", int(re.search(r"listening on 127\.0\.0\.1:(\d+) ", line)[1])
        assert run("ctl", "ready", "--control", control).returncode == 0
        made.process.send_signal(signal.SIGTERM)
        assert "SIGTERM: not ready; closing in 600 s; again to close now" in made.hear("closing")
        assert run("ctl", "ready", "--control", control).returncode == 1
        client = connect(address)
        far, _ = listener.accept()
        with far:
            far.settimeout(WAIT)
            exchange(client, far)
            made.process.send_signal(signal.SIGTERM)
            assert "SIGTERM: closing; 1 open, 30 s to finish" in made.hear("closing")
            until_gone(address)
            exchange(client, far)
            made.process.send_signal(signal.SIGTERM)
            assert made.wait()[0] == 0
            assert ending(client) == ending(far) == "reset"


def test_each_tunnel_drains_for_its_own_time(start, connect, listener):
    place = "{}:{}".format(*listener.getsockname())
    fleet = start("[defaults]\ndrain = 0\n" + tunnel("a", ":0", place) + tunnel("b", ":0", place, "drain = 20"))
    pairs = []
    for address in fleet.wait_for("a", "b"):
        client = connect(address)
        far, _ = listener.accept()
        far.settimeout(WAIT)
        exchange(client, far)
        pairs.append((client, far))
    (one, one_far), (other, other_far) = pairs
    with one_far, other_far:
        fleet.process.send_signal(signal.SIGTERM)
        assert ending(one) == "reset"
        exchange(other, other_far)
        other.close()
        assert other_far.recv(1) == b""
    assert fleet.command.wait()[0] == 0


def test_limits_of_the_file_hold(start, connect, target):
    text = (
        "[defaults]\nidle_timeout = 0.1\n"
        + tunnel("a", ":0", target)
        + tunnel("b", ":0", target, 'idle_timeout = "none"')
    )
    fleet = start(text, "-v")
    a, b = fleet.wait_for("a", "b")
    patient = connect(b)
    assert ending(connect(a)) == "reset"
    assert "a: 127.0.0.1:" in fleet.command.hear("idle after")
    assert says_hello(patient)


def test_json_lines_have_the_name(start, connect, target):
    fleet = start(tunnel("a", ":0", target), "-v", "--log-format", "json")
    [a] = fleet.wait_for("a")
    assert says_hello(connect(a))
    line = json.loads(fleet.command.hear('"connection"'))
    assert line["message"].startswith("a: ")
    said = fleet.command.end()[1]
    assert json.loads(said.splitlines()[-1])["stats"]["accepted"] == 1


def test_paths_are_relative_to_the_file(start, connect, tmp_path, ssh_server, target, certificates):
    for name, path in (("key", ssh_server.keyfile), ("cert.pem", certificates.cert), ("key.pem", certificates.key)):
        (tmp_path / name).write_bytes(Path(path).read_bytes())
        (tmp_path / name).chmod(0o600)
    host, port = ssh_server.address
    hop = f'[hops.bastion]\naddress = "ssh://{ssh_server.user}@{host}:{port}"\nhostkey = "{ssh_server.fingerprint}"\n'
    text = hop + 'keyfile = "key"\n' + tunnel("a", ":0", target, 'via = ["bastion"]')
    text += tunnel("tls", "tls://:0?cert=cert.pem&key=key.pem", target)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    fleet = start(text, cwd=elsewhere)
    [a, tls] = fleet.wait_for("a", "tls")
    assert says_hello(connect(a))
    with certificates.client().wrap_socket(connect(tls), server_hostname="localhost") as client:
        client.sendall(b"hello")
        assert client.recv(5) == b"hello"
    assert fleet.command.end()[0] == 0


def test_the_file_of_the_working_directory_and_of_the_user(make_file, tmp_path, target):
    path = make_file(tunnel("here", "tls://:0?cert=x", target))
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "config")}
    assert "relay: here: " in run("up", cwd=path.parent, env=environment).stderr
    users = tmp_path / "config" / "relay" / "relay.toml"
    users.parent.mkdir(parents=True)
    path.rename(users)
    assert "relay: here: " in run("up", cwd=tmp_path, env=environment).stderr
    users.unlink()
    done = run("up", cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert done.stderr == f"relay: relay.toml: no such file here, nor {users}; name a file\n"


def test_a_wrong_file_opens_nothing(make_file, target):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    text = tunnel("a", port, target, "idle_timout = 3") + tunnel("b", port, target, 'via = ["bastoin"]')
    path = make_file(text)
    done = run("up", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    assert first.startswith(
        f"relay: {path}:4: tunnels.a.idle_timout: there is no such key (did you mean idle_timeout?)"
    )
    assert second.startswith(f"relay: {path}:8: tunnels.b.via[0]: there is no hop 'bastoin'")


def test_a_file_that_is_not_to_be_trusted_and_one_that_is_not_there(make_file, target, tmp_path):
    done = run("up", str(make_file(tunnel("a", ":0", target), 0o622)))
    assert done.returncode == 2
    assert "others can write to it (mode 0622)" in done.stderr
    done = run("up", str(tmp_path / "none"))
    assert (done.returncode, done.stderr) == (2, f"relay: {tmp_path}/none: No such file or directory; check the path\n")


def test_the_file_in_the_help_is_right(tmp_path):
    done = run("up", "--help", env={**os.environ, "COLUMNS": "200"})
    assert (done.returncode, done.stderr) == (0, "")
    text = up.EXAMPLES.partition("A file:")[2].rpartition("relay check --schema")[0].replace("\b\n", "")
    assert all(line.strip() in done.stdout for line in text.splitlines())
    path = tmp_path / "relay.toml"
    path.write_text(text)
    path.chmod(0o600)
    found = read(str(path))
    assert found.problems.in_order() == []
    assert [entry.name for entry in found.entries] == ["db", "site", "proxy"]
