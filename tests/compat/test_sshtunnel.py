"""``relay.compat.sshtunnel``: its names, its arguments, and what it does with them."""

import argparse
import base64
import contextlib
import gc
import inspect
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import paramiko
import pytest
import sshtunnel as original
from documents import PAGES
from helpers import WAIT, Thread, echo, ending, is_gone, makes, receive_exactly, wait_until
from ssh_agent import RealAgent
from sshd import make_key

from relay.addresses.parse import parse_hops
from relay.compat import _sshtunnel as parts
from relay.compat import sshtunnel
from relay.compat.sshtunnel import (
    BaseSSHTunnelForwarderError,
    HandlerSSHTunnelForwarderError,
    SSHTunnelForwarder,
    open_tunnel,
)
from relay.transports.ssh.connection import Settings

LOGGER = logging.getLogger("test of sshtunnel")
TARGET = ("db.internal", 5432)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A user who has neither keys nor an agent."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / ".ssh").mkdir(mode=0o700)
    return tmp_path / ".ssh"


@pytest.fixture
def make(ssh_server, echo_server, home, spawner_thread):
    """Makes forwarders to an embedded server, which knows its user's key, and stops them."""

    def forwarder(**options):
        given = {
            "ssh_address_or_host": ssh_server.address,
            "ssh_username": ssh_server.user,
            "ssh_pkey": str(ssh_server.keyfile),
            "ssh_config_file": None,
            "ssh_host_key": key_line(ssh_server) if not {"host_keys", "ssh_config_file"} & {*options} else None,
            "remote_bind_address": echo_server.address,
            "logger": LOGGER,
        }
        return SSHTunnelForwarder(**(given | options))

    yield from makes(forwarder, lambda made: made.stop(force=True))


def key_line(server):
    return Path(server.known_hosts).read_text().strip()


def answers(address):
    """Return whether the echo server answers there."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(WAIT)
        client.connect(address)
        client.sendall(b"hello")
        return receive_exactly(client, 5) == b"hello"


# -- names ------------------------------------------------------------------------------------------------------------


def test_the_parameters_are_those_of_the_original():
    ours, theirs = (inspect.signature(one.SSHTunnelForwarder).parameters for one in (sshtunnel, original))
    named = [one for one in theirs.values() if one.kind is one.POSITIONAL_OR_KEYWORD]
    assert len(named) == 20
    shared = [one for one in ours.values() if one.kind is one.POSITIONAL_OR_KEYWORD]
    assert [(one.name, one.default) for one in shared] == [(one.name, one.default) for one in named]
    assert set(ours) - set(theirs) == {"host_keys"}


def test_each_public_name_of_the_class_is_there():
    theirs = [name for name in vars(original.SSHTunnelForwarder) if not name.startswith("_")]
    assert len(theirs) == 17 + 3  # and three that are flags
    for name in theirs:
        ours = inspect.getattr_static(SSHTunnelForwarder, name)
        value = inspect.getattr_static(original.SSHTunnelForwarder, name)
        assert type(ours) is type(value)
        if callable(value):
            parameters = [
                [(one.name, one.default) for one in inspect.signature(each).parameters.values()]
                for each in (ours, value)
            ]
            assert parameters[0] == parameters[1]


def test_the_variables_and_exceptions_are_those_of_the_original():
    for name in ("SSH_TIMEOUT", "TUNNEL_TIMEOUT", "DEFAULT_LOGLEVEL", "TRACE_LEVEL", "SSH_CONFIG_FILE", "__version__"):
        assert getattr(sshtunnel, name) == getattr(original, name)
    assert issubclass(HandlerSSHTunnelForwarderError, BaseSSHTunnelForwarderError)
    for owner in (BaseSSHTunnelForwarderError, original.BaseSSHTunnelForwarderError):
        for error in (owner("text"), owner(value="text"), owner("other", value="text")):
            assert (str(error), error.value) == ("text", "text")
        assert str(owner()) == ""


def test_the_import_loads_no_paramiko():
    code = "import sys, relay.compat.sshtunnel; print({'paramiko', 'cryptography', 'zmq'} & {*sys.modules})"
    root = os.path.dirname(os.path.dirname(os.path.dirname(sshtunnel.__file__)))
    run = [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r}); {code}"]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "set()\n"


# -- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"remote_bind_address": None}, ValueError, "remote_bind_address: it is missing"),
        ({"remote_bind_addresses": [TARGET]}, ValueError, "remote_bind_addresses is given, too"),
        ({"local_bind_addresses": [("", 0)] * 2}, ValueError, "more than remote_bind_addresses"),
        ({"remote_bind_address": "/run/db.sock"}, AssertionError, "expected \\(host, port\\)"),
        ({"remote_bind_address": ("db", "5432")}, AssertionError, "port: expected a number"),
        ({"remote_bind_address": (1, 5432)}, AssertionError, "host: expected a str"),
        ({"local_bind_address": "/nowhere/at/all"}, ValueError, "no path for a Unix socket"),
        ({"local_bind_address": 5432}, AssertionError, "expected \\(host, port\\)"),
        ({"ssh_address_or_host": None}, TypeError, "host: expected a str"),
        ({"ssh_address_or_host": "-x"}, ValueError, "is not a host"),
        ({"ssh_username": "-x"}, ValueError, "is not a user's name"),
        ({"ssh_password": b"x"}, TypeError, "password: expected a str"),
        ({"ssh_host_key": "nonsense"}, ValueError, "no host key in it"),
        ({"ssh_host_key": 1}, ValueError, "no host key in it"),
        ({"host_keys": "no"}, ValueError, "host_keys: expected strict"),
        ({"set_keepalive": -1}, ValueError, "keepalive"),
        ({"ssh_pkey": None}, ValueError, "no password or key"),
        ({"ssh_adress": "x"}, ValueError, "unknown arguments: ssh_adress"),
        ({"ssh_address": "x"}, ValueError, "an older name of ssh_address_or_host"),
    ],
)
def test_arguments_that_cannot_be(options, kind, text):
    given = {"ssh_address_or_host": "bastion", "ssh_password": None, "ssh_config_file": None, "logger": LOGGER}
    given |= {"ssh_pkey": paramiko.ECDSAKey.generate(), "remote_bind_address": TARGET}
    with warnings_of(DeprecationWarning if "ssh_address" in options else None), pytest.raises(kind, match=text):
        SSHTunnelForwarder(**{**given, **options})


def warnings_of(kind):
    return pytest.warns(kind) if kind else contextlib.nullcontext()


def test_older_names(make):
    with pytest.warns(DeprecationWarning, match="'ssh_host' is DEPRECATED use 'ssh_address_or_host'"):
        made = open_tunnel(ssh_host="bastion", ssh_password="x", remote_bind_address=TARGET, ssh_port=2222)
    assert (made.ssh_host, made.ssh_port) == ("bastion", 2222)
    with pytest.warns(DeprecationWarning, match="mute_exceptions"):
        made = make(raise_exception_if_any_forwarder_have_a_problem=False)
    assert made._raise_fwd_exc is False


def test_open_tunnel_has_arguments_of_its_own():
    made = open_tunnel("bastion", ssh_password="x", remote_bind_address=TARGET, debug_level="INFO")
    assert made.logger.level == logging.INFO and made.logger.handlers
    assert made.skip_tunnel_checkup and made.ssh_port == 22
    with pytest.warns(DeprecationWarning, match="block_on_close"):
        made = open_tunnel(
            ("bastion", 1), ssh_password="x", remote_bind_address=TARGET, block_on_close=True, skip_tunnel_checkup=False
        )
    assert not made.skip_tunnel_checkup and made.ssh_port == 1


def test_a_logger_is_set_up_once(monkeypatch):
    monkeypatch.setattr(sshtunnel, "DEFAULT_LOGLEVEL", logging.WARNING)
    mine = logging.getLogger("test of sshtunnel: mine")
    mine.handlers.clear()
    for _ in range(2):
        assert sshtunnel.create_logger(mine, capture_warnings=False) is mine
        assert (mine.level, len(mine.handlers)) == (logging.WARNING, 1)
    captured = logging.getLogger("py.warnings")
    try:
        sshtunnel.create_logger(mine, "DEBUG")
        assert (mine.handlers[0].level, captured.handlers) == (logging.DEBUG, mine.handlers)
    finally:
        logging.captureWarnings(False)
        captured.removeHandler(mine.handlers[0])
    quiet = logging.getLogger("test of sshtunnel: quiet")
    quiet.setLevel(logging.CRITICAL)
    quiet.addHandler(logging.NullHandler())
    assert sshtunnel.create_logger(quiet, capture_warnings=False).level == logging.CRITICAL


def test_the_configuration(home, tmp_path):
    key = tmp_path / "key"
    make_key(key)
    config = tmp_path / "config"
    config.write_text(
        f"Host db\n  HostName 10.0.0.1\n  Port 2222\n  User me\n  IdentityFile {key}\n  Compression yes\n"
    )
    options = {"remote_bind_address": TARGET, "ssh_config_file": str(config), "logger": LOGGER}
    made = SSHTunnelForwarder("db", **options)
    found = (made.ssh_host, made.ssh_port, made.ssh_username, made.compression, len(made.ssh_pkeys))
    assert found == ("10.0.0.1", 2222, "me", True, 1)
    made = SSHTunnelForwarder("db", ssh_username="you", ssh_port=22, compression=False, **options)
    assert (made.ssh_host, made.ssh_port, made.ssh_username, made.compression) == ("10.0.0.1", 22, "you", False)
    assert made._server.compress is False
    config.write_text("\0Host = = db\n")
    assert SSHTunnelForwarder("db", ssh_password="x", **options).ssh_host == "db"


def test_the_text_shows_no_password(make):
    made = make(ssh_password="secret", ssh_private_key_password="hidden", ssh_proxy=("127.0.0.1", 3))
    text = repr(made)
    assert "secret" not in text and "hidden" not in text and "status: not started" in text
    assert "authentication: password, keys (ssh-ed25519), agent" in text


# -- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protection", [None, "pass"])
def test_keys_of_files(tmp_path, home, caplog, protection):
    make_key(home / "id_ed25519", protection)
    (home / "id_rsa").write_text("nonsense")
    read = SSHTunnelForwarder.read_private_key_file
    with caplog.at_level(logging.DEBUG):
        keys = SSHTunnelForwarder.get_keys(LOGGER)
    assert [key.get_name() for key in keys] == ([] if protection else ["ssh-ed25519"])
    assert f"{len(keys)} key(s) loaded" in caplog.messages
    assert ("Password is required" in caplog.text) is bool(protection)
    assert read(str(home / "id_ed25519"), protection).get_name() == "ssh-ed25519"
    if protection:
        assert read(str(home / "id_ed25519"), "wrong", paramiko.Ed25519Key, LOGGER) is None
    else:
        assert read(str(home / "id_ed25519"), None, paramiko.RSAKey, LOGGER) is None
    assert SSHTunnelForwarder.get_keys(None, [str(tmp_path)]) == []


def test_a_key_of_each_origin_logs_in(make, ssh_server, home, tmp_path):
    key = paramiko.Ed25519Key.from_private_key_file(ssh_server.keyfile)
    for options in ({"ssh_pkey": key}, {"ssh_pkey": str(ssh_server.keyfile)}):
        with make(host_pkey_directories=[], **options) as made:
            assert answers(made.local_bind_address)
    (home / "id_ed25519").write_bytes(Path(ssh_server.keyfile).read_bytes())
    with make(ssh_pkey=None) as made:
        assert answers(made.local_bind_address)
    with pytest.raises(ValueError, match="no password or key"):
        make(ssh_pkey=None, host_pkey_directories=[])


def test_a_password_logs_in_after_the_keys(make, make_ssh_server, tmp_path):
    server = make_ssh_server(users={"me": "secret"})
    make_key(tmp_path / "key", "pass")
    options = {"ssh_address_or_host": server.address, "ssh_username": "me", "ssh_host_key": key_line(server)}
    with make(
        ssh_password="secret", ssh_pkey=str(tmp_path / "key"), ssh_private_key_password="pass", **options
    ) as made:
        assert answers(made.local_bind_address) and len(made.ssh_pkeys) == 1
    with pytest.raises(BaseSSHTunnelForwarderError, match="rejected: password"):
        make(ssh_password="wrong", ssh_pkey=None, **options).start()


def test_the_keys_of_the_agent(make, ssh_server, tmp_path, monkeypatch, spawner_thread):
    with RealAgent(tmp_path / "agent") as agent:
        monkeypatch.setenv("SSH_AUTH_SOCK", agent.path)
        subprocess.run(["ssh-add", "-q", str(ssh_server.keyfile)], check=True, capture_output=True)
        keys = SSHTunnelForwarder.get_keys(None, [], allow_agent=True)
        assert [key.get_name() for key in keys] == ["ssh-ed25519"]
        keys[0].agent.close()
        with make(ssh_pkey=None) as made:
            assert answers(made.local_bind_address)
        wrong = paramiko.ECDSAKey.generate()
        with pytest.raises(BaseSSHTunnelForwarderError, match="rejected: the caller's key"):
            make(ssh_pkey=wrong, allow_agent=False).start()


@pytest.mark.parametrize("kind", ["file", "nothing", "an object"])
def test_a_key_that_is_none(make, caplog, tmp_path, kind):
    (tmp_path / "file").write_text("nonsense")
    made = make(ssh_pkey=object() if kind == "an object" else str(tmp_path / kind), ssh_password="wrong")
    assert made.ssh_pkeys == []
    assert ("not found" in caplog.text, "is ignored" in caplog.text) == (kind == "nothing", kind == "an object")


# -- host keys --------------------------------------------------------------------------------------------------------


def test_the_forms_of_a_host_key(ssh_server):
    kind, blob = key_line(ssh_server).split()[1:3]
    pin = parts.Pin.of(key_line(ssh_server))
    assert pin.fingerprint.startswith("SHA256:") and pin.type == kind and pin.algorithms
    key = paramiko.PKey.from_type_string(kind, base64.b64decode(blob))
    assert pin == parts.Pin.of(f"{kind} {blob}") == parts.Pin.of(blob) == parts.Pin.of(key)
    assert parts.Pin.of(pin.fingerprint) == parts.Pin(pin.fingerprint)
    assert parts.Pin(pin.fingerprint).algorithms == ()
    assert parts.Pin("SHA256:x", "ssh-rsa").algorithms == ("rsa-sha2-512", "rsa-sha2-256")


def test_an_unknown_host_key(make, ssh_server, home, monkeypatch, tmp_path, caplog):
    known = tmp_path / "known"
    config = tmp_path / "config"
    config.write_text(f"Host *\n  UserKnownHostsFile {known}\n")
    options = {"ssh_config_file": str(config)}
    with pytest.raises(BaseSSHTunnelForwarderError, match="is not known .* ssh_host_key"):
        make(**options).start()
    assert not known.exists()
    with make(host_keys="off", **options) as made:
        assert answers(made.local_bind_address)
    assert not known.exists() and "host keys are not verified" in caplog.text
    monkeypatch.setattr(sshtunnel, "HOST_KEYS", "accept-new")
    with make(**options) as made:
        assert answers(made.local_bind_address)
    assert key_line(ssh_server).split()[2] in known.read_text()
    monkeypatch.undo()
    with make(host_keys="strict", **options) as made:
        assert answers(made.local_bind_address)


# -- start and stop ---------------------------------------------------------------------------------------------------


def test_several_targets(make, echo_server, serve, tmp_path):
    other = serve(echo)
    path = str(tmp_path / "socket")
    made = make(
        remote_bind_address=None,
        remote_bind_addresses=[echo_server.address, other.address, other.address],
        local_bind_addresses=[("127.0.0.1",), path],
    )
    with made:
        first, second, third = made.local_bind_addresses
        assert second == path and third[0] == "127.0.0.1"
        assert made.local_bind_ports == [first[1], third[1]] and made.local_bind_hosts == ["127.0.0.1"] * 2
        assert all(map(answers, made.local_bind_addresses))
        assert made.tunnel_bindings == {echo_server.address: first, other.address: third}
        assert made.tunnel_is_up == dict.fromkeys((first, second, third), True)
        for name in ("local_bind_port", "local_bind_host", "local_bind_address"):
            with pytest.raises(BaseSSHTunnelForwarderError, match=name):
                getattr(made, name)
    assert not os.path.exists(path) and is_gone(first)
    assert (made.is_alive, made.is_active, made.tunnel_is_up, made.tunnel_bindings) == (False, False, {}, {})
    with pytest.raises(BaseSSHTunnelForwarderError, match="not started"):
        _ = made.local_bind_ports


def test_it_restarts(make, ssh_server):
    made = make(local_bind_address=("", 0))
    made.start()
    assert made.local_bind_host == "0.0.0.0"
    made.restart()
    assert answers(("127.0.0.1", made.local_bind_port))
    made.close()
    assert ssh_server.logins == 2


def test_a_target_that_is_down(make, caplog, reserved):
    down = ("127.0.0.1", reserved)
    made = make(remote_bind_address=down)
    made.skip_tunnel_checkup = False
    with pytest.raises(HandlerSSHTunnelForwarderError, match=f"127.0.0.1:{reserved} is down"):
        made.start()
    assert not made.is_alive
    made.skip_tunnel_checkup = True
    made.start()
    local = made.local_bind_address
    assert made.tunnel_is_up == {local: True}
    assert made.local_is_up(local) is False and made.tunnel_is_up == {local: False}
    assert made.local_is_up("nonsense") is False
    with socket.create_connection(local, WAIT) as client:
        ending(client)
    assert f"to 127.0.0.1:{reserved}: " in caplog.text


def test_an_address_that_is_taken(make, listener, echo_server, caplog):
    taken = listener.getsockname()
    with pytest.raises(HandlerSSHTunnelForwarderError, match="in use"):
        make(local_bind_address=taken).start()
    made = make(remote_bind_address=None, remote_bind_addresses=[echo_server.address] * 2, local_bind_addresses=[taken])
    with made:
        assert len(made.local_bind_addresses) == 1 and answers(made.local_bind_address)
    muted = make(local_bind_address=taken, mute_exceptions=True)
    muted.start()
    assert not muted.is_alive and "HandlerSSHTunnelForwarderError" in caplog.text


def test_a_server_that_is_not_there(make, caplog, reserved):
    options = {"ssh_address_or_host": ("127.0.0.1", reserved)}
    with pytest.raises(BaseSSHTunnelForwarderError, match="no SSH connection: .*refused"):
        make(**options).start()
    muted = make(mute_exceptions=True, **options)
    muted.start()
    assert not muted.is_alive and "BaseSSHTunnelForwarderError" in caplog.text
    muted.stop()
    assert "Server is not started. Please .start() first!" in caplog.messages


def test_one_connection_at_a_time(make, serve):
    gate = threading.Event()
    server = serve(lambda connection: (connection.sendall(b"x"), gate.wait(WAIT)))
    with make(threaded=False, remote_bind_address=server.address) as made:
        with socket.create_connection(made.local_bind_address, WAIT) as first:
            assert first.recv(1) == b"x"
            with socket.create_connection(made.local_bind_address, WAIT) as second:
                second.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    second.recv(1)
                second.settimeout(WAIT)
                gate.set()
                first.close()
                assert second.recv(1) == b"x"


def test_a_stop_waits_only_where_the_program_does(make, listener):
    made = make(remote_bind_address=listener.getsockname())
    made.daemon_forward_servers = False
    made.start()
    assert [thread.daemon for thread in threading.enumerate() if thread.name.startswith("open until")] == [False]
    with socket.create_connection(made.local_bind_address, WAIT) as client, listener.accept()[0]:
        stopping = Thread(made.stop)
        wait_until(lambda: is_gone(client.getpeername()))
        assert stopping.is_alive()
        client.sendall(b"the last")
        client.close()
    stopping.result()
    made.start()
    with socket.create_connection(made.local_bind_address, WAIT) as client, listener.accept()[0]:
        made.stop(force=True)
        assert ending(client) == "reset"


def test_a_forwarder_that_is_forgotten_is_stopped(make, ssh_server, echo_server, caplog):
    made = SSHTunnelForwarder(
        ssh_server.address, None, key_line(ssh_server), ssh_username=ssh_server.user,
        ssh_pkey=str(ssh_server.keyfile), remote_bind_address=echo_server.address, logger=LOGGER,
    )  # fmt: skip
    made.start()
    address = made.local_bind_address
    del made
    gc.collect()
    wait_until(lambda: is_gone(address))
    assert "was not stopped" in caplog.text


def test_a_time_to_connect(make, ssh_server, monkeypatch):
    """The server is frozen, so that a client waits for ``TUNNEL_TIMEOUT``."""
    monkeypatch.setattr(sshtunnel, "TUNNEL_TIMEOUT", 0.3)
    with make(set_keepalive=0) as made:
        ssh_server.freeze()
        begin = time.monotonic()
        with socket.create_connection(made.local_bind_address, WAIT) as client:
            assert ending(client) == "reset"
        assert 0.3 <= time.monotonic() - begin < 15  # relay's own limit is 30 s
        assert made.local_is_up(made.local_bind_address) is False
        ssh_server.thaw()


def test_each_connection_is_logged_at_the_level_trace(make, caplog, echo_server):
    with caplog.at_level(sshtunnel.TRACE_LEVEL, logger=LOGGER.name), make() as made:
        assert answers(made.local_bind_address)
    (line,) = [record for record in caplog.records if record.levelname == "TRACE"]
    assert f"5 bytes to send to {echo_server.address}, got 5" in line.getMessage()


# -- the way to the server --------------------------------------------------------------------------------------------


def test_a_proxy_that_is_an_address(make, ssh_server):
    with make(ssh_address_or_host=("nowhere.invalid", 22), ssh_proxy=ssh_server.address) as made:
        assert answers(made.local_bind_address)


def test_a_proxy_that_is_a_command_is_started_for_each_connection(make, ssh_server, tmp_path, spawner_thread):
    path = tmp_path / "bridge.py"
    path.write_text(
        "import os, socket, sys, threading\n"
        "server = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "def back():\n"
        "    while data := server.recv(65536): os.write(1, data)\n"
        "    os._exit(0)\n"
        "threading.Thread(target=back, daemon=True).start()\n"
        "while data := os.read(0, 65536): server.sendall(data)\n"
    )
    words = [sys.executable, str(path), *map(str, ssh_server.address)]
    command = paramiko.ProxyCommand(" ".join(words))
    with make(ssh_address_or_host=("nowhere.invalid", 22), ssh_proxy=command) as made:
        assert answers(made.local_bind_address)
        ssh_server.stop()
        wait_until(lambda: not made.is_active)
        ssh_server.start()
        assert answers(made.local_bind_address)
    assert command.process.returncode is not None
    assert "proxy: no" in str(make(ssh_proxy=("h", 1), ssh_proxy_enabled=False))


@pytest.mark.parametrize("is_connected", [True, False])
def test_a_proxy_that_is_a_socket_serves_once(make, ssh_server, is_connected):
    given = socket.socket()
    if is_connected:
        given.connect(ssh_server.address)
    made = make(ssh_proxy=given)
    with made:
        assert answers(made.local_bind_address)
    with pytest.raises(BaseSSHTunnelForwarderError, match="cannot be used again"):
        made.start()


def test_a_proxy_that_has_the_methods_of_a_socket(make, ssh_server, make_ssh_server):
    outer = make_ssh_server()
    with socket.create_connection(outer.address, WAIT) as sock, paramiko.Transport(sock) as transport:
        key = paramiko.Ed25519Key.from_private_key_file(outer.keyfile)
        transport.connect(username=outer.user, pkey=key)
        channel = transport.open_channel("direct-tcpip", ssh_server.address, ("127.0.0.1", 0), timeout=WAIT)
        with make(ssh_proxy=channel) as made:
            assert answers(made.local_bind_address)


def test_the_proxies_of_the_configuration(tmp_path):
    settings = Settings(None, "host", 22, "me", command="nc host 22", jumps=("jump",))
    login = {"keys": (), "agent": True, "pin": None, "host_keys": "strict"}
    kept = parts.Login(proxied=True, command=None, **login)(settings)
    assert (kept.command, kept.jumps) == ("nc host 22", ("jump",))
    for command in (None, "other"):
        changed = parts.Login(proxied=False, command=command, **login)(settings)
        assert (changed.command, changed.jumps) == (command, ())


# -- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_has_an_equivalent_of_each_argument_of_the_command(monkeypatch):
    parsers = []
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda self, _: parsers.append(self) or self)
    original._parse_arguments([])
    actions = [one for one in parsers[0]._actions if "-h" not in one.option_strings]
    rows = re.findall(r"^\| ([^|]+) \| (.*) \|$", PAGES["sshtunnel"].split("\n## The command\n")[1], re.MULTILINE)
    shown = {tuple(re.findall(r"`([^`]+)`", left)): right for left, right in rows}
    assert len(actions) == 17
    for action in actions:
        right = shown[tuple(action.option_strings) or (action.dest,)]
        for word in re.findall(r"--via '?([^`']+)'?`", right):
            parse_hops([word, *([] if word.startswith("ssh:") else ["ssh://bastion"])])
