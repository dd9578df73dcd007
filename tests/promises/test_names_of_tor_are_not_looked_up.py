"""A name in .onion is never given to the resolver of this machine (RFC 7686); a hop that resolves names gets it."""

import contextlib
import os
import shlex
import shutil
import socket

import pytest
from command_rig import run
from helpers import WAIT, receive_all, receive_exactly
from sshd import FarEnd

import relay

NAMES = ["site.onion", "SITE.Onion.", "www.site.onion", "site。onion", "ｓｉｔｅ.ｏｎｉｏｎ"]
REMEDY = "a name of Tor, .*; give Tor as the hop before it, --via tor:$"


@pytest.fixture
def resolver(monkeypatch):
    """A resolver that fails the test when it gets a name."""
    look_up = socket.getaddrinfo

    def find(host, *arguments, **more):
        assert "onion" not in str(host).lower(), "it was looked up"
        assert str(host).isascii(), "it was looked up"
        return look_up(host, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", find)


def connect(url, via=()):
    relay.connect(url, via, timeout=WAIT).close()


CALLS = {
    "tcp": lambda name: relay.tcp(name, 80)(),
    "tls": lambda name: relay.tls(name, 443)(),
    "target": lambda name: connect(f"{name}:80"),
    "tls target": lambda name: connect(f"tls://{name}:443"),
    "listen": lambda name: relay.listen(f"{name}:80"),
    "socks5": lambda name: connect("127.0.0.1:80", [f"socks5://{name}:1080"]),
    "http": lambda name: connect("127.0.0.1:80", [f"http://{name}:8080"]),
    "paramiko": lambda name: connect("127.0.0.1:80", [f"ssh://me@{name}?backend=paramiko&config=/dev/null"]),
    "openssh": lambda name: connect("127.0.0.1:80", [f"ssh://me@{name}?backend=openssh&config=/dev/null"]),
    "i2p": lambda name: connect("i2p://x.i2p", [f"i2p:?sam={name}:7656"]),
}


@pytest.fixture
def ssh_alone(monkeypatch, tmp_path):
    """An ssh that only prints its configuration."""
    program = shutil.which("ssh")
    if program is None:
        pytest.skip("there is no ssh (Debian: openssh-client)")
    double = tmp_path / "ssh"
    double.write_text(f'#!/bin/sh\ncase "$*" in *" -G "*) exec {program} "$@";; esac\ntouch {tmp_path}/was-started\n')
    double.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    yield
    assert not (tmp_path / "was-started").exists()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("call", CALLS)
def test_a_call(call, name, resolver, ssh_alone, spawner_thread):
    with pytest.raises(relay.RelayError, match=REMEDY):
        CALLS[call](name)


@pytest.mark.parametrize("backend", ["paramiko", "openssh"])
@pytest.mark.parametrize("lines", ["HostName site.onion", "ProxyJump there\nHost there\nHostName site.onion"])
def test_a_name_of_the_ssh_configuration(backend, lines, tmp_path, resolver, ssh_alone, spawner_thread):
    config = tmp_path / "config"
    config.write_text(f"Host alias\nUser me\n{lines}\n")
    with pytest.raises(relay.RelayError, match=REMEDY):
        connect("127.0.0.1:80", [f"ssh://alias?backend={backend}&config={config}"])


def test_a_proxy_command_may_lead_there(tmp_path, resolver, spawner_thread):
    config, asked = tmp_path / "config", tmp_path / "asked"
    config.write_text(f"Host *\nProxyCommand echo %h > {shlex.quote(str(asked))}\n")
    with pytest.raises(relay.RelayError):
        connect("127.0.0.1:80", [f"ssh://me@site.onion?backend=paramiko&config={config}"])
    assert asked.read_text() == "site.onion\n"


def ask(tunnel, name):
    """The reply of a SOCKS5 proxy."""
    with socket.create_connection(tunnel.address, WAIT) as client:
        client.sendall(b"\5\1\0\5\1\0\3" + bytes([len(name)]) + name.encode() + b"\0\x50")
        assert receive_exactly(client, 2) == b"\5\0"
        return receive_all(client)[1]


@pytest.mark.parametrize("name", ["site.onion", "SITE.Onion."])
def test_a_request_of_a_proxy_client(name, resolver, caplog):
    with relay.Tunnel(relay.socks_listen("127.0.0.1", 0), relay.dynamic()) as tunnel:
        assert ask(tunnel, name) == 2  # not allowed
    assert "--via tor:" in caplog.text


@contextlib.contextmanager
def proxy(protocol):
    """A proxy that refuses everything, and the hosts that it was asked for."""
    asked = []

    def refuse(destination):
        asked.append(destination.host)
        raise ConnectionRefusedError

    listen = relay.socks_listen if protocol == "socks5" else relay.http_listen
    with relay.Tunnel(listen("127.0.0.1", 0), refuse) as tunnel:
        yield "{}://{}:{}".format(protocol, *tunnel.address), asked


@pytest.mark.parametrize("protocol", ["socks5", "http"])
def test_a_proxy_gets_it(protocol, resolver):
    with proxy(protocol) as (hop, asked):
        with pytest.raises(relay.ConnectError):
            connect("site.onion:80", [hop])
        with relay.Tunnel(relay.socks_listen("127.0.0.1", 0), relay.dynamic(rules=[f"*.onion={hop}"])) as tunnel:
            assert ask(tunnel, "site.onion") != 0
        assert asked == ["site.onion"] * 2


def test_an_ssh_server_gets_it(backend, sshd, resolver):
    with pytest.raises(relay.ConnectError) as failed:
        connect("site.onion:80", [FarEnd("sshd", backend, sshd).url])
    assert "name of Tor" not in str(failed.value)


@pytest.mark.parametrize(
    "words",
    [
        ["pipe", "site.onion:80"],
        ["forward", ":0", "site.onion:80"],
        ["forward", ":0", "127.0.0.1:9", "--via", "socks5://site.onion:9050"],
        ["forward", ":0", "127.0.0.1:9", "--via", "ssh://me@site.onion"],
        ["doctor", "site.onion:80"],
    ],
)
def test_a_command_says_so_once(words):
    done = run(*words)
    said = done.stdout + done.stderr
    assert done.returncode in (1, 2)
    assert said.count("name of Tor") == said.count("--via tor:") == 1, said
