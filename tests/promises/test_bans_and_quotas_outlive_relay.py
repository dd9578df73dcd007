"""A ban and a quota outlive ``relay up``, also one that is killed; ``relay ctl`` lists and clears them."""

import json
import signal
import socket
import stat

from command_rig import run
from helpers import WAIT, receive_all, send_and_end, wait_until

FILE = """
state = "{state}"
control = "{control}"
[tunnels.web]
listen = "127.0.0.1:{port}"
target = "{target}"
limit = [
    {{name = "few", rate = "1/1h", ban = "10m"}},
    {{name = "much", per = "tunnel", quota = "1MB/month"}},
]
"""


class Up:
    """relay up with a file of limits, again and again."""

    def __init__(self, start, tmp_path, target, port):
        self._start = start
        self.state = tmp_path / "relay.state"
        self.control = str(tmp_path / "c.sock")
        self.file = tmp_path / "relay.toml"
        self.address = ("127.0.0.1", port)
        text = FILE.format(state=self.state, control=self.control, port=port, target="{}:{}".format(*target))
        self.file.write_text(text)

    def open(self):
        command = self._start(str(self.file), command="up")
        assert "listening on" in command.process.stdout.readline()
        return command

    def has_written(self):
        """Return whether a transaction with the ban is over: it is in the file, and nothing is to be rolled back."""
        journal = self.state.with_name("relay.state-journal")
        is_over = not journal.exists() or not journal.read_bytes().startswith(b"\xd9\xd5\x05\xf9")
        return is_over and b"few127.0.0.1" in self.state.read_bytes()

    def reply(self):
        """Return what a client gets back; nothing if it is rejected."""
        try:
            with socket.create_connection(self.address, WAIT) as client:
                send_and_end(client, b"hello")
                return receive_all(client)
        except OSError:  # a reset may come before the shutdown
            return b""

    def ctl(self, *words):
        return run("ctl", *words, "--control", self.control)

    def listed(self, kind):
        return json.loads(self.ctl(kind, "--json").stdout)[kind]


def test_they_are_kept_listed_and_cleared(start, tmp_path, echo_server, reserved):
    up = Up(start, tmp_path, echo_server.address, reserved)
    command = up.open()
    assert [up.reply(), up.reply()] == [b"hello", b""]
    assert [(one["tunnel"], one["limit"], one["key"]) for one in up.listed("bans")] == [("web", "few", "127.0.0.1")]
    assert [(one["key"], one["used"], one["quota"]) for one in up.listed("quotas")] == [("*", 10, 1_000_000)]
    shown = up.ctl("bans").stdout.splitlines()
    assert shown[0].split() == ["key", "tunnel", "limit", "ends", "in"] and shown[1].startswith("127.0.0.1")
    assert command.end()[0] == 0
    assert stat.S_IMODE(up.state.stat().st_mode) == 0o600
    command = up.open()
    assert up.reply() == b""
    assert up.listed("quotas")[0]["used"] == 10
    missing = up.ctl("bans", "--clear", "192.0.2.1")
    assert missing.returncode == 2
    assert "192.0.2.1: there are no bans with this key; relay ctl bans lists them" in missing.stderr
    assert up.ctl("bans", "web", "--clear", "127.0.0.1").returncode == 0
    assert up.ctl("quotas", "--clear", "*").returncode == 0
    assert up.listed("bans") == up.listed("quotas") == []
    assert up.reply() == b"hello"
    assert command.end()[0] == 0


def test_a_kill_loses_a_second_or_two_at_most(start, tmp_path, echo_server, reserved):
    up = Up(start, tmp_path, echo_server.address, reserved)
    command = up.open()
    assert [up.reply(), up.reply()] == [b"hello", b""]
    wait_until(up.has_written)
    command.process.send_signal(signal.SIGKILL)
    command.process.wait(WAIT)
    command = up.open()
    assert up.reply() == b""
    assert command.end()[0] == 0


def test_a_file_that_cannot_be_used_is_one_warning(start, tmp_path, echo_server, reserved):
    up = Up(start, tmp_path, echo_server.address, reserved)
    up.state.write_bytes(b"no database" * 100)
    command = up.open()
    assert [up.reply(), up.reply()] == [b"hello", b""]
    status, log = command.end()
    assert status == 0
    assert log.count("it is damaged, or no database; remove it or name another file; relay goes on without it") == 1


def test_check_names_a_folder_that_is_missing(tmp_path):
    file = tmp_path / "relay.toml"
    file.write_text('state = "none/state"\n[tunnels.web]\nlisten = ":0"\ntarget = "127.0.0.1:9"\n')
    done = run("check", str(file))
    assert done.returncode == 2 and "state: state file none/state: no directory " in done.stderr
