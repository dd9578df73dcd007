"""``relay.daemon.loops``: a tunnel that leads back to itself is refused, by ``relay check`` and at the start."""

import os
import socket

import pytest
from command_rig import run

ITSELF = ": the tunnel itself listens there; name another target"


@pytest.fixture
def port():
    """A port that no test listens at: the command is to end before that."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture
def check(tmp_path):
    """Checks a file, and starts it where it has a problem; the lines about it."""

    def make(text):
        file = tmp_path / "relay.toml"
        file.touch(0o600)
        file.write_text(text)
        checked = run("check", str(file))
        if checked.returncode:
            started = run("up", str(file), "--control", "none")
            assert (started.returncode, started.stdout, started.stderr) == (2, "", checked.stderr)
        return checked.stderr.replace(f"relay: {file}", "").splitlines()

    return make


def tunnel(name, listen, target, more=""):
    return f'[tunnels.{name}]\nlisten = "{listen}"\ntarget = "{target}"\n{more}'


@pytest.mark.parametrize(
    ("listen", "target"),
    [
        ("{port}", "{port}"),
        ("127.0.0.1:{port}", "localhost:{port}"),
        ("localhost:{port}", "127.0.0.1:{port}"),
        ("[::1]:{port}", "localhost:{port}"),
        ("0.0.0.0:{port}", "{port}"),
        ("0.0.0.0:{port}", "127.0.0.7:{port}"),
        ("0.0.0.0:{port}", "0.0.0.0:{port}"),
        ("[::]:{port}", "127.0.0.1:{port}"),
        ("[::]:{port}", "[::1]:{port}"),
        ("127.0.0.1:{port}", "[::ffff:127.0.0.1]:{port}"),
        ("127.0.0.1:{port}", "tls://127.0.0.1:{port}"),
        ("Some.Name:{port}", "some.name:{port}"),
    ],
)
def test_a_command_line_that_leads_to_itself(listen, target, port):
    words = [word.format(port=port) for word in ("forward", listen, target)]
    started = run(*words)
    assert (started.returncode, started.stdout) == (2, "")
    assert started.stderr.endswith(f":{port}{ITSELF}\n"), started.stderr
    checked = run("check", "--", *words)
    assert (checked.returncode, checked.stderr.count("\n")) == (2, 1)
    assert ITSELF in checked.stderr


@pytest.mark.parametrize(
    ("listen", "target"),
    [
        ("127.0.0.1:{port}", "127.0.0.2:{port}"),
        ("127.0.0.1:{port}", "[::1]:{port}"),
        ("0.0.0.0:{port}", "[::1]:{port}"),
        ("0.0.0.0:{port}", "192.0.2.1:{port}"),
        ("127.0.0.1:{port}", "127.0.0.1:1"),
        (":0", "127.0.0.1:{port}"),
    ],
)
def test_a_command_line_that_leads_elsewhere(listen, target, port):
    checked = run("check", "--", "forward", listen.format(port=port), target.format(port=port))
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_target_of_a_rule(port):
    started = run("socks", f"sni://127.0.0.1:{port}", "--rule", "a=direct", "--rule", f"*=tcp://localhost:{port}")
    assert (started.returncode, started.stdout) == (2, "")
    assert started.stderr.endswith(f"localhost:{port}{ITSELF}\n"), started.stderr


def test_paths_that_are_the_same(tmp_path):
    (tmp_path / "real").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "link")
    for path in ("real/a.sock", "link/a.sock", "real/../link/a.sock"):
        started = run("forward", f"unix://{tmp_path}/real/a.sock", f"unix://{tmp_path}/{path}")
        assert (started.returncode, ITSELF in started.stderr) == (2, True), started.stderr
    other = run("check", "--", "forward", f"unix://{tmp_path}/real/a.sock", f"unix://{tmp_path}/real/b.sock")
    assert (other.returncode, other.stderr) == (0, "")


def test_two_that_lead_to_each_other(check, port):
    lines = check(tunnel("a", port, "localhost:1") + tunnel("b", "localhost:1", port))
    assert lines == [
        ":3: tunnels.a.target: localhost:1: it leads back to this tunnel through b; name another target",
        f":6: tunnels.b.target: 127.0.0.1:{port}: it leads back to this tunnel through a; name another target",
    ]


def test_a_ring_of_three_and_what_leads_into_it(check, port, tmp_path):
    path = f"unix://{tmp_path}/c"
    file = tunnel("a", port, "127.0.0.1:1") + tunnel("b", "127.0.0.1:1", path) + tunnel("c", path, port)
    lines = check(file + tunnel("d", ":0", f"{port}"))
    assert [line.partition("through ")[2].partition(";")[0] for line in lines] == ["b, c", "c, a", "a, b"]


def test_one_of_several_targets(check, port):
    (line,) = check(f'[tunnels.a]\nlisten = "{port}"\ntarget = ["127.0.0.1:1", "localhost:{port}"]\n')
    assert line == f":3: tunnels.a.target: localhost:{port}{ITSELF}"


def test_a_chain_of_tunnels_is_no_loop(check, port):
    assert check(tunnel("a", ":0", f"{port}") + tunnel("b", port, "127.0.0.1:1")) == []
    over = tunnel("a", ":0", "db:1", f'via = ["socks5://127.0.0.1:{port}"]\n')
    assert check(over + tunnel("b", port, "127.0.0.1:1")) == []


@pytest.mark.parametrize(
    ("via", "is_loop"),
    [("ssh://me@localhost", True), ("ssh://me@127.0.0.1:22", True), ("ssh://me@127.0.0.1:2222", False)],
)
def test_behind_the_ssh_server_of_this_machine(via, is_loop, port):
    """The port of another one may be that of a container, where the target is not here."""
    checked = run("check", "--", "forward", f"{port}", f"{port}", "--via", via)
    assert (ITSELF in checked.stderr) is is_loop, checked.stderr


def test_a_first_hop_that_leads_back(check, port):
    lines = check(tunnel("a", port, "db:1", f'via = ["socks5://127.0.0.1:{port}"]\n'))
    assert lines == [f":3: tunnels.a.target: socks5://127.0.0.1:{port}{ITSELF}"]
