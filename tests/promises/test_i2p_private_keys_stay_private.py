"""A private key appears in no log, no exception, no output and no file that others can read."""

import contextlib
import logging
import os
import stat
import traceback
from pathlib import Path

import pytest
from command_rig import commands, run
from helpers import exchange, wait_until
from i2p_world import SHORT
from sam_rig import ScriptedBridge

import relay
from relay.addresses.destinations import PrivateKey
from relay.carriers.listing import carriers
from relay.transports.i2p import key_file as keyfiles

PIECE = 16  # characters or bytes in a row that betray it


class Secret:
    """The part of a private key that must stay secret, in each form in which it may be written."""

    def __init__(self, key):
        public = len(PrivateKey.from_bytes(key.data).destination) // 4 * 3
        secret = key.data[public:]
        forms = [key.base64[len(key.destination) :], secret.hex(), secret.decode("latin-1"), repr(secret)[2:-1]]
        self._pieces = {form[at : at + PIECE] for form in forms for at in range(len(form) - PIECE + 1)}

    def is_in(self, text):
        return any(text[at : at + PIECE] in self._pieces for at in range(len(text) - PIECE + 1))


@pytest.fixture(autouse=True)
def home(monkeypatch, times, tmp_path):
    """A directory for the user's data; files are open to all users, unless relay restricts them.

    No test waits until a router has forgotten the last session of a key.
    """
    times(remembered=(0.0, 0.0))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def everything(caplog):
    """All that is logged, from the lowest level on."""
    caplog.set_level(logging.DEBUG)
    return caplog


def told(error):
    """All that an exception says of itself, and of what led to it, with every local variable's name and none."""
    return "".join(traceback.format_exception(error)) + repr(error) + str(vars(error)) + str(error.args)


def test_the_search_finds_one():
    key = PrivateKey.generate()
    secret = Secret(key)
    for shown in (key.base64, key.data.hex(), repr(key.data), key.base64[-40:], f"x{key.data!r}y"):
        assert secret.is_in(shown)
    assert not secret.is_in(key.destination + repr(key) + key.b32)


def test_not_in_the_log_nor_in_what_objects_say_of_themselves(i2p_double, over_i2p, everything, tmp_path):
    paths = [tmp_path / "server.dat", tmp_path / "client.dat"]
    rig = over_i2p(i2p_double, serve={"keys": paths[0]}, reach={"keys": paths[1]})
    secrets = [Secret(keyfiles.read(path)) for path in paths]
    exchange(*rig.connect())
    for bridge in (i2p_double.servers, i2p_double.clients):
        bridge.refuse_sessions(1, "INVALID_ID")
        bridge.kill()
    wait_until(lambda: rig.server.state == rig.tunnel.state == "backing off")
    things = [rig.server, rig.tunnel, rig.server._listener, rig.tunnel._sender, *carriers()]
    said = [repr(one) + str(one) for one in things]
    said += [repr(tunnel.recent() + tunnel.connections()) for tunnel in (rig.server, rig.tunnel)]
    for text in (everything.text, *said):
        assert not any(secret.is_in(text) for secret in secrets)
    assert "backing off" in everything.text


REFUSALS = ["INVALID_KEY", "I2P_ERROR", "DUPLICATED_DEST", "nonsense"]


@pytest.mark.parametrize("result", REFUSALS)
def test_not_in_an_error(i2p_double, everything, tmp_path, result, times):
    times(duplicate=0.1)
    path = tmp_path / "keys.dat"
    keyfiles.write(path, PrivateKey.generate())
    secret = Secret(keyfiles.read(path))
    i2p_double.servers.refuse_sessions(100, result)
    with pytest.raises(relay.SAMError) as failed:
        i2p_double.serve(9, keys=path)
    assert not secret.is_in(told(failed.value))
    assert not secret.is_in(everything.text)


class Parrot(ScriptedBridge):
    """A bridge that repeats what it gets, as errors of parsers do: first when it refuses, then after all is well."""

    def answer_to(self, line):
        if line.startswith("SESSION CREATE"):
            private = line.partition("DESTINATION=")[2].split()[0]
            if len(self.asked) == 1:
                return f"SESSION STATUS RESULT=INVALID_KEY DESTINATION={private}"
            self.made = f"SESSION STATUS RESULT=OK DESTINATION={private}"
            return self._session
        self.controls[0].say(self.made)
        return super().answer_to(line)

    def _session(self, end):
        self.controls.append(end)
        end.say(self.made)
        end.over.wait()


def test_not_where_the_bridge_repeats_it(everything, tmp_path):
    path = tmp_path / "keys.dat"
    keyfiles.write(path, PrivateKey.generate())
    secret = Secret(keyfiles.read(path))
    with contextlib.closing(Parrot()) as bridge:
        with pytest.raises(relay.SAMError) as failed:
            relay.TunnelServer("", 9, bridge.name, keys=path, **SHORT)
        assert not secret.is_in(told(failed.value))
        with relay.TunnelServer("", 9, bridge.name, keys=path, accept="accept", **SHORT) as server:
            wait_until(lambda: "SESSION STATUS" in everything.text)
            assert server.b32 == keyfiles.read(path).b32
    assert not secret.is_in(everything.text)


@pytest.mark.parametrize("cut", [3, 40, 100])
def test_not_where_the_file_is_damaged(everything, tmp_path, cut):
    """The error says what is wrong with the file, and not what is in it."""
    key = PrivateKey.generate()
    secret = Secret(key)
    for number, data in enumerate((key.data[:-cut], key.base64[:-cut].encode(), key.base64.encode() + b"!" * cut)):
        path = tmp_path / f"keys-{number}.dat"
        path.touch(0o600)
        path.write_bytes(data)
        with pytest.raises(relay.SAMError) as failed:
            relay.TunnelServer("", 9, "127.0.0.1:1", keys=path)
        assert not secret.is_in(told(failed.value))
    assert not secret.is_in(everything.text)


def test_not_in_a_file_that_others_can_read(i2p_double, tmp_path):
    with i2p_double.serve(9, session="a site"), i2p_double.serve(9, keys=tmp_path / "keys.dat"):
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert len([path for path in files if path.suffix == ".dat"]) == 2
        for path in files:
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
        for path in (tmp_path / "data").rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_one_that_others_can_read_is_refused(i2p_double, tmp_path):
    path = tmp_path / "keys.dat"
    keyfiles.write(path, PrivateKey.generate())
    path.chmod(0o644)
    with pytest.raises(relay.SAMError, match="chmod 600"):
        i2p_double.serve(9, keys=path)


def test_not_in_what_the_command_says(i2p_double, tmp_path):
    path = tmp_path / "keys.dat"
    with commands() as start:
        place = f"i2p:?sam={i2p_double.server}&in_depth=0&out_depth=0"
        command = start("127.0.0.1:9", "--on", place, "--keys", str(path), "-v", "--debug", command="expose")
        said = command.process.stdout.readline()
        secret = Secret(keyfiles.read(path))
        for name in ("cmdline", "environ"):
            shown = Path(f"/proc/{command.process.pid}/{name}").read_bytes()
            assert not secret.is_in(shown.decode("latin-1"))
        i2p_double.servers.kill()
        command.hear("trying again")
        _, errors = command.end()
    assert keyfiles.read(path).b32 in said
    assert not secret.is_in(said + errors)
    shown = run("keys", "show", str(path))
    assert shown.returncode == 0, shown.stderr
    assert not secret.is_in(shown.stdout + shown.stderr)
    path.chmod(0o644)
    refused = run("expose", "127.0.0.1:9", "--on", place, "--keys", str(path), "--debug")
    assert refused.returncode == 2
    assert not secret.is_in(refused.stdout + refused.stderr)
