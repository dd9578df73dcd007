"""A failure in a chain names the hop that it belongs to, in one line and without secrets."""

import subprocess

import chain_world
import pytest
from command_rig import run
from helpers import WAIT, ended, fate_of_client, refusing
from sshd import FarEnd, make_key

import relay

TARGET = "127.0.0.1:9"
AT_I2P = f"{'a' * 52}.b32.i2p:80"
SECRET = "hunter2"


@pytest.fixture(scope="module")
def world(tmp_path_factory, spawner_thread):
    with chain_world.running(tmp_path_factory.mktemp("world")) as world:
        yield world


@pytest.fixture
def three(backend, make_sshd):
    return [FarEnd("sshd", backend, make_sshd()) for _ in range(3)]


@pytest.fixture
def nowhere():
    with refusing() as address:
        yield "{}:{}".format(*address)


def name(url):
    return url.partition("?")[0]


def failure(target, via, kind=relay.ConnectError):
    """The error of an attempt, as text."""
    with pytest.raises(kind) as failed:
        relay.connect(target, via, timeout=WAIT)
    assert "\n" not in str(failed.value)
    return failed.value


def untrusted(far_end, tmp_path):
    (tmp_path / "hosts").write_text(f"[127.0.0.1]:{far_end.rig.port} {make_key(tmp_path / 'other')}\n")
    return far_end.address(known_hosts=tmp_path / "hosts")


def test_a_host_key_that_has_changed(three, tmp_path):
    via = [one.url for one in three]
    via[1] = untrusted(three[1], tmp_path)
    error = failure(TARGET, via, relay.HostKeyError)
    assert str(error).startswith(f"hop 2 of 3 ({name(via[1])}): ")
    assert [one.logins for one in three] == [1, 0, 0]


def test_a_login_that_is_refused(three, tmp_path):
    make_key(tmp_path / "key")
    via = [three[0].address(keyfile=tmp_path / "key"), three[1].url]
    error = failure(TARGET, via, relay.AuthenticationError)
    assert str(error).startswith(f"hop 1 of 2 ({name(via[0])}): ")
    assert [one.logins for one in three[:2]] == [0, 0]


@pytest.mark.parametrize("after", ["paramiko", "openssh", "i2p", "socks5", "http"])
@pytest.mark.parametrize("before", ["paramiko", "openssh", "socks5", "http", "exec"])
def test_a_hop_that_refuses_connections(world, nowhere, before, after):
    """It is that one's error, but where the one before it cannot tell more than that there is no way."""
    hops = {"i2p": f"i2p:?sam={nowhere}", "socks5": f"socks5://{nowhere}", "http": f"http://{nowhere}"}
    via = [*world.via([before]), hops.get(after, f"ssh://me@{nowhere}?backend={after}&config=/dev/null")]
    error = failure(AT_I2P if after == "i2p" else TARGET, via, relay.RelayError)
    named = [f"hop 2 of 2 ({via[1] if after == 'i2p' else name(via[1])}): "]
    if before in ("http", "exec"):
        named.append(f"hop 1 of 2 ({'exec:nc …' if before == 'exec' else via[0]}): ")
    assert str(error).startswith(tuple(named))
    assert nowhere in str(error) or before == "exec"
    if before == "paramiko" or (before == "openssh" and after != "i2p"):
        assert isinstance(error, relay.ConnectError) and error.reason == "refused"


@pytest.mark.parametrize("before", ["paramiko", "openssh", "socks5", "http"])
def test_a_hop_whose_name_is_unknown(world, before):
    via = [*world.via([before]), "ssh://me@nobody.invalid:22?config=/dev/null"]
    error = failure(TARGET, via, relay.RelayError)
    named = f"hop 2 of 2 ({name(via[1])}): "
    assert str(error).startswith(named)
    assert "nobody.invalid" in str(error).removeprefix(named)


@pytest.mark.parametrize("last", ["paramiko", "openssh", "socks5", "http"])
def test_a_target_that_refuses_connections(world, nowhere, last):
    via = world.via(["paramiko", "openssh", last])
    error = failure(nowhere, via)
    assert str(error).startswith((f"{nowhere}: ", f"hop 3 of 3 ({via[2]}): it answers CONNECT {nowhere} "))
    assert error.reason == "refused" or last == "http"


def test_a_target_that_refuses_connections_behind_a_command(world, nowhere):
    """All that relay knows is that the command has ended."""
    factory = relay.target(nowhere, world.via(["paramiko", "openssh", "exec"]))
    with relay.Tunnel(relay.listen(":0"), factory) as tunnel:
        assert fate_of_client(tunnel.address) == "reset"
        ended(tunnel)


WITH_SECRETS = {
    "ssh": f"ssh://me:{SECRET}@{{}}?config=/dev/null",
    "i2p": f"i2p:?sam={{}}&user=me&password={SECRET}",
    "socks5": f"socks5://me:{SECRET}@{{}}",
    "http": f"http://me:{SECRET}@{{}}",
    "exec": f"exec:false {SECRET} %h %p",
}


@pytest.mark.parametrize("kind", WITH_SECRETS)
def test_secrets_are_shown_nowhere(world, nowhere, kind, caplog):
    caplog.set_level("DEBUG")
    via = [*world.via(["paramiko"]), WITH_SECRETS[kind].format(nowhere)]
    target = AT_I2P if kind == "i2p" else TARGET
    factory = relay.target(target, via)
    shown = [repr(factory), str(factory.last_error)]
    with relay.Tunnel(relay.listen(":0"), factory, connect_timeout=1.0) as tunnel:
        assert fate_of_client(tunnel.address) == "reset"
        shown += [str(factory.last_error), repr(factory), *map(repr, tunnel.recent()), *caplog.messages]
    assert SECRET not in "\n".join(shown)


@pytest.mark.parametrize("kind", ["ssh", "i2p", "socks5", "http"])
@pytest.mark.parametrize("command", [("forward", ":0"), ("pipe",)], ids=["forward", "pipe"])
def test_secrets_are_refused_on_the_command_line(command, kind):
    via = ["--via", "ssh://a@127.0.0.1:1", "--via", WITH_SECRETS[kind].format("127.0.0.1:1")]
    target = AT_I2P if kind == "i2p" else TARGET
    result = run(*command, target, *via, stdin=subprocess.DEVNULL)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and "password" in result.stderr
    assert SECRET not in result.stderr + result.stdout


@pytest.mark.parametrize("command", [("forward", ":0"), ("pipe",)], ids=["forward", "pipe"])
def test_a_command_ends_with_one_line(command, three, tmp_path):
    via = [one.url for one in three]
    via[1] = untrusted(three[1], tmp_path)
    result = run(*command, TARGET, *(word for url in via for word in ("--via", url)), stdin=subprocess.DEVNULL)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert f"hop 2 of 3 ({name(via[1])}): " in result.stderr
