"""A file that is wrong in many ways: the caller of a reload and the log get the reason, and nothing changes."""

import os
import re
import signal
import socket
import subprocess

from command_rig import commands, tunnel
from group_rig import letter, repeats
from helpers import WAIT, receive_exactly

from relay.cli import app as cli


def wrong_files(path, good, target, taken):
    """Yield ways to make the file wrong, and a part of what relay says about each."""

    def write(text, mode=0o600):
        data = text if isinstance(text, bytes) else text.encode()

        def work():
            path.write_bytes(data)
            path.chmod(mode)

        return work

    def replace(make):
        def work():
            path.unlink()
            make()

        return work

    yield write("[tunnels.one\n"), "relay.toml:1: this is not TOML"
    yield write(good + "nonsense = 1\n"), "relay.toml:4: tunnels.one.nonsense: there is no such key"
    yield write(good + 'nconnect = "many"\n'), "relay.toml:4: tunnels.one.nconnect: expected a whole number"
    yield write(good + '[tunnels.two]\nlisten = ":0"\n'), "tunnels.two: there is no target"
    yield write(tunnel("one", "nowhere")), "target 'nowhere': no port"
    yield write(tunnel("one", target, 'via = ["bastion"]')), "there is no hop 'bastion'"
    yield write(good + tunnel("two", target, listen=":1") + tunnel("three", target, listen=":1")), "two listens there"
    yield write(good + tunnel("two", "9", listen=":9")), "the tunnel itself listens there"
    yield write(good + tunnel("two", target, listen=f":{taken}")), "two: 127.0.0.1:{}: Address already in use"
    yield write(good + tunnel("two", target, listen="192.0.2.1:0")), "this machine has no such address"
    yield write(good + tunnel("two", target, listen=f"tls://:0?cert={path}.no&key={path}.no")), "relay.toml.no"
    yield write(good + tunnel("two", "exec:no-such-program-at-all")), "program not found"
    yield write(good + tunnel("two", target, 'via = ["ssh://me:secret@x"]'), 0o644), "a password is written there"
    yield write(""), "there are no tunnels in it"
    yield write(b"\xff" + good.encode()), "relay.toml:1: a byte that is not UTF-8"
    yield write(good, 0o666), "others can write to it (mode 0666)"
    yield write(good + "#" * (5 << 20)), "it has more than 4194304 bytes"
    yield replace(lambda: path.symlink_to("/no/such/file")), "relay.toml: No such file or directory"
    yield replace(path.mkdir), "relay.toml: not a regular file"
    yield replace(lambda: os.mkfifo(path, 0o600)), "relay.toml: not a regular file"
    yield replace(lambda: None), "relay.toml: No such file or directory"


def remove(path):
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def test_each_mistake_is_told_to_the_caller_and_in_the_log_and_changes_nothing(
    tmp_path, environment, serve, monkeypatch, capsys
):
    path = tmp_path / "relay.toml"
    target = "{}:{}".format(*serve(letter(b"a")).address)
    good = tunnel("one", target)
    path.touch(0o600)
    path.write_text(good)

    def ctl(*words):  # in this process: there are many
        monkeypatch.setattr("sys.argv", ["relay", "ctl", *words])
        return cli.run(), *capsys.readouterr()

    with commands() as start, socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        command = start(str(path), command="up", env=environment, stdin=subprocess.DEVNULL)
        line = command.process.stdout.readline()
        address = ("127.0.0.1", int(re.match(r"one: listening on 127\.0\.0\.1:(\d+)", line)[1]))
        before = ctl("list")
        with socket.create_connection(address, WAIT) as still:
            assert receive_exactly(still, 1) == b"a"
            for break_it, words in wrong_files(path, good, target, taken):
                break_it()
                text = words.format(taken)
                for option in (["--dry-run"] if "listens" in text else [], []):
                    status, output, errors = ctl("reload", *option)
                    assert (status, output, errors.count("\n")) == (1, "", 1), (words, errors)
                    assert errors.startswith("relay: ") and text in errors
                command.process.send_signal(signal.SIGHUP)
                for _ in ("by ctl", "by the signal"):
                    assert text in command.hear(text)
                    assert command.hear("reload: ").endswith(" ERROR reload: nothing has changed\n")
                assert repeats(still)
                with socket.create_connection(address, WAIT) as new:
                    assert receive_exactly(new, 1) == b"a"
                remove(path)
                path.touch(0o600)
                path.write_text(good)
            assert ctl("reload") == (0, "nothing has changed\n", "")
            (elsewhere := tmp_path / "elsewhere.toml").touch(0o600)
            elsewhere.write_text(good + "nconnect = 9\n")
            path.unlink()
            path.symlink_to(elsewhere)
            assert ctl("reload") == (0, "one: tuned (nconnect)\n", "")
            assert repeats(still)
        assert [row.split()[:2] for row in ctl("list")[1].splitlines()[:2]] == [
            row.split()[:2] for row in before[1].splitlines()[:2]
        ]
        status, said = command.end(signal.SIGTERM)
    assert status == 0
    assert "Traceback" not in said
