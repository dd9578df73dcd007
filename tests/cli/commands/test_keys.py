"""``relay keys``: the command that makes the keys of a destination, and shows them but for what is secret."""

import os
import stat

import pytest
from command_rig import run

from relay.addresses.destinations import PrivateKey
from relay.transports.i2p.key_file import KeyFile, read, write


def lines(done):
    """Return what a command that went well has printed."""
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_new_keys_are_made_and_their_address_is_printed(tmp_path):
    path = tmp_path / "me.dat"
    address, where = lines(run("keys", "new", str(path)))
    assert read(path).b32 == address
    assert str(path) in where
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["me.dat"]


def test_they_are_shown_but_for_the_private_key(tmp_path):
    key = PrivateKey.generate()
    write(tmp_path / "me.dat", key)
    assert lines(run("keys", "show", str(tmp_path / "me.dat"))) == [key.b32, key.destination]


def test_keys_in_base64_are_shown_too(tmp_path):
    key = PrivateKey.generate()
    path = tmp_path / "me.txt"
    path.touch(0o600)
    path.write_text(f"{key.base64}\n")
    assert lines(run("keys", "show", str(path))) == [key.b32, key.destination]


def test_keys_that_are_in_use_are_shown(tmp_path):
    with KeyFile.open(tmp_path / "me.dat", PrivateKey.generate) as file:
        assert lines(run("keys", "show", str(tmp_path / "me.dat")))[0] == file.key.b32


def test_a_file_that_is_there_is_never_overwritten(tmp_path):
    path = tmp_path / "me.dat"
    path.write_bytes(b"precious")
    done = run("keys", "new", str(path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"relay: {path}: file exists; a key is never overwritten, so choose another name\n"
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("command", "name", "problem"),
    [
        ("new", "none/me.dat", "cannot write: No such file or directory"),
        ("show", "none", "no such file"),
        ("show", "open", "private key is accessible to other users (mode 0644); run chmod 600"),
        ("show", "damaged", "not an I2P private key (these are 678 bytes; a private key of this destination has"),
    ],
)
def test_a_failure_is_one_line(tmp_path, command, name, problem):
    data = PrivateKey.generate().data
    for file, bits, size in (("open", 0o644, 679), ("damaged", 0o600, 678)):
        (tmp_path / file).write_bytes(data[:size])
        (tmp_path / file).chmod(bits)
    done = run("keys", command, str(tmp_path / name))
    assert (done.returncode, done.stdout) == (2 if command == "show" else 1, "")
    assert done.stderr.startswith(f"relay: {tmp_path / name}: {problem}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["new"], ["show"], ["frobnicate"], ["new", "a", "b"], ["show", "--secret", "a"]])
def test_a_wrong_command_line_is_status_2(arguments):
    done = run("keys", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("relay: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["keys"], "Make and show the keys of I2P destinations."),
        (["keys", "new"], "Make the keys of a new I2P destination and write them to FILE, owner-only (mode 0600)."),
        (["keys", "show"], "Show the address and the destination of the keys in FILE; never the private key."),
    ],
)
def test_the_help_tells_what_it_does(arguments, words):
    done = run(*arguments, "--help", env={**os.environ, "COLUMNS": "200"})
    assert words in done.stdout
    assert (done.returncode, done.stderr) == (0, "")
