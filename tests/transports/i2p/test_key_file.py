"""``relay.transports.i2p.key_file``: files of private keys, made once, never damaged further, one session at a time."""

import errno
import fcntl
import math
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers import WAIT, Thread, wait_until
from i2plib.sam import Destination

import relay
from relay.addresses.destinations import PrivateKey
from relay.transports.i2p import key_file
from relay.transports.i2p.key_file import KeyFile, TransientKey, path_of_session, read, write

KEY = PrivateKey.generate()
OTHER = PrivateKey.generate()


def never():
    raise AssertionError("a new key was made")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def saved(path, data=KEY.data):
    """A file as another user may have written it."""
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def refused(path, problem, make=never):
    """The one line that says why a file cannot be used."""
    with pytest.raises(relay.SAMError, match=problem) as raised:
        KeyFile.open(path, make)
    text = str(raised.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    assert KEY.base64[600:610] not in repr(raised.value)
    return text


# Making.


def test_a_missing_file_is_made_once_and_kept(tmp_path):
    path = tmp_path / "me.dat"
    with KeyFile.open(path, lambda: KEY) as file:
        assert (file.path, file.key) == (path, KEY)
        assert path.read_bytes() == KEY.data
        assert mode(path) == 0o600
    with KeyFile.open(str(path), never) as file:
        assert file.key == KEY
    assert os.listdir(tmp_path) == ["me.dat"]


def test_nobody_else_can_read_it_for_a_moment(tmp_path, monkeypatch):
    """Whatever the umask is, and at every step."""
    seen = []
    real_link, real_fsync = os.link, os.fsync

    def look(real):
        def call(*arguments, **options):
            seen.append({name: mode(tmp_path / name) for name in os.listdir(tmp_path)})
            return real(*arguments, **options)

        return call

    monkeypatch.setattr(os, "link", look(real_link))
    monkeypatch.setattr(os, "fsync", look(real_fsync))
    before = os.umask(0)
    try:
        KeyFile.open(tmp_path / "me.dat", lambda: KEY).close()
    finally:
        os.umask(before)
    assert len(seen) == 3
    assert {one for modes in seen for one in modes.values()} == {0o600}


def test_a_file_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    """Nor is anything left of one that could not be written."""

    def full(descriptor):
        assert not (tmp_path / "me.dat").exists()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    refused(tmp_path / "me.dat", "cannot write: No space left on device", lambda: KEY)
    assert os.listdir(tmp_path) == []


def test_a_failure_to_make_a_key_leaves_nothing(tmp_path):
    with pytest.raises(AssertionError):
        KeyFile.open(tmp_path / "me.dat", never)
    assert os.listdir(tmp_path) == []
    KeyFile.open(tmp_path / "me.dat", lambda: KEY).close()


def test_nothing_is_ever_overwritten(tmp_path):
    path = saved(tmp_path / "me.dat", b"precious")
    with pytest.raises(relay.SAMError, match="file exists; a key is never overwritten, so choose another name"):
        write(path, KEY)
    dangling = tmp_path / "link"
    dangling.symlink_to("nowhere")
    with pytest.raises(relay.SAMError, match="file exists"):
        write(dangling, KEY)
    assert path.read_bytes() == b"precious"
    assert sorted(os.listdir(tmp_path)) == ["link", "me.dat"]


def test_of_two_who_write_at_once_one_is_told(tmp_path):
    def attempt(key):
        barrier.wait(WAIT)
        try:
            write(tmp_path / "me.dat", key)
        except relay.SAMError:
            return None
        return key

    for _ in range(20):
        barrier = threading.Barrier(2)
        threads = [Thread(attempt, key) for key in (KEY, OTHER)]
        (written,) = filter(None, [thread.result() for thread in threads])
        assert read(tmp_path / "me.dat") == written
        (tmp_path / "me.dat").unlink()


# Reading.


@pytest.mark.parametrize(
    "data",
    [KEY.data, KEY.base64.encode(), f"{KEY.base64}\n".encode(), f" {KEY.base64.rstrip('=')}\r\n".encode()],
    ids=["bytes", "base64", "a line", "no padding"],
)
def test_what_routers_and_libraries_write_is_read(tmp_path, data):
    path = saved(tmp_path / "me.dat", data)
    assert read(path) == KEY
    with KeyFile.open(path, never) as file:
        assert file.key == KEY
    assert path.read_bytes() == data


def test_i2plib_reads_what_is_written_here(tmp_path):
    write(tmp_path / "me.dat", KEY)
    destination = Destination(path=tmp_path / "me.dat", has_private_key=True)
    assert (destination.base64, destination.private_key.base64) == (KEY.destination, KEY.base64)
    assert f"{destination.base32}.b32.i2p" == KEY.b32


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "empty"),
        (b"\0" * 679, "base64"),
        (KEY.data[:400], "400 bytes; a private key of this destination has 679"),
        (KEY.data + b"x", "680 bytes"),
        (KEY.data[:391], "this is the destination alone"),
        (KEY.destination.encode(), "this is the destination alone"),
        (KEY.base64.encode()[:-2] + b"!!", "not of I2P's base64"),
        (KEY.data[:-32] + OTHER.data[-32:], "its signing key does not match its destination"),
        (
            KEY.data[:660] + bytes([KEY.data[660] ^ 1]) + KEY.data[661:],
            "its signing key does not match its destination",
        ),
        (KEY.data[:-32] + bytes(32), "signing private key is empty"),
        (b"-----BEGIN PRIVATE KEY-----\n", "base64"),
        (b"x" * (1 << 20), "more than 16384 bytes"),
    ],
    ids=map(str, range(12)),
)
def test_a_damaged_file_is_an_error_and_no_new_identity(tmp_path, data, problem):
    path = saved(tmp_path / "me.dat", data)
    before = path.stat()
    text = refused(path, problem)
    assert "not an I2P private key" in text and "is unchanged" in text
    assert path.read_bytes() == data and path.stat().st_mtime_ns == before.st_mtime_ns
    assert os.listdir(tmp_path) == ["me.dat"]


@pytest.mark.parametrize("bits", [0o644, 0o640, 0o604, 0o660, 0o610])
def test_a_file_that_others_can_read_is_refused(tmp_path, bits):
    path = saved(tmp_path / "me.dat")
    path.chmod(bits)
    refused(path, re.escape(f"private key is accessible to other users (mode {bits:04o}); run chmod 600"))
    with pytest.raises(relay.SAMError, match="chmod 600"):
        read(path)


def test_a_file_of_another_user_was_not_put_there_by_us(tmp_path, monkeypatch):
    path = saved(tmp_path / "me.dat")
    path.chmod(0o444)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    assert read(path) == KEY


def test_one_may_also_be_read_only_for_oneself(tmp_path):
    path = saved(tmp_path / "me.dat")
    path.chmod(0o400)
    assert read(path) == KEY


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    refused(tmp_path / "fifo", "cannot read: not a regular file")
    refused(tmp_path, "cannot read: not a regular file")
    refused(tmp_path / "none" / "me.dat", "No such file or directory", lambda: KEY)
    for wrong in ("nul\0", "\ud800"):
        with pytest.raises(relay.SAMError, match="not a path"):
            KeyFile.open(tmp_path / wrong, never)
    with pytest.raises(relay.SAMError, match="no such file"):
        read(tmp_path / "none")


def test_the_home_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write("~/me.dat", KEY)
    assert read("~/me.dat") == KEY
    with KeyFile.open("~/me.dat", never) as file:
        assert file.path == tmp_path / "me.dat"


# Locking.


def test_the_same_keys_twice_at_once_are_refused(tmp_path):
    path = tmp_path / "me.dat"
    link = tmp_path / "link.dat"
    link.symlink_to(path)
    file = KeyFile.open(path, lambda: KEY)
    for again in (path, link):
        refused(again, "the key is in use by another session")
    file.close()
    file.close()
    with KeyFile.open(link, never):
        refused(path, "in use")


def test_a_link_to_nowhere_says_where_to_put_it(tmp_path):
    (tmp_path / "link.dat").symlink_to(tmp_path / "me.dat")
    with KeyFile.open(tmp_path / "link.dat", lambda: KEY):
        refused(tmp_path / "me.dat", "in use")
    assert read(tmp_path / "me.dat") == KEY
    assert (tmp_path / "link.dat").is_symlink()


def test_a_file_that_was_replaced_meanwhile_stays_locked(tmp_path):
    path = tmp_path / "me.dat"
    with KeyFile.open(path, lambda: KEY):
        os.replace(saved(tmp_path / "new", OTHER.data), path)
        refused(path, "in use")
    with KeyFile.open(path, never) as file:
        assert file.key == OTHER


def test_a_key_is_made_once_however_many_ask(tmp_path):
    """And no two processes have it at the same time."""
    made, having, most = [], [], []

    def make():
        made.append(PrivateKey.generate())
        return made[-1]

    def use():
        barrier.wait(WAIT)
        for _ in range(30):
            try:
                with KeyFile.open(tmp_path / "me.dat", make) as file:
                    having.append(file)
                    most.append(len(having))
                    assert file.key == made[0]
                    having.remove(file)
            except relay.SAMError as error:
                assert "in use" in str(error)

    barrier = threading.Barrier(8)
    for thread in [Thread(use) for _ in range(8)]:
        thread.result()
    assert len(made) == 1
    assert set(most) == {1}
    assert os.listdir(tmp_path) == ["me.dat"]


def test_whoever_finds_the_lock_of_the_last_one_removed_asks_again(tmp_path, monkeypatch):
    """Between opening the file beside and locking it, its last holder may have released and removed it."""
    path = saved(tmp_path / "me.dat")
    first = KeyFile.open(path, never)
    real, opened = fcntl.flock, []

    def flock(descriptor, operation):
        if operation & fcntl.LOCK_EX and not opened:
            opened.append(descriptor)
            first.close()
        return real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with KeyFile.open(path, never):
        assert opened
        refused(path, "in use")


HOLD = """
import sys
from relay.transports.i2p.key_file import KeyFile
file = KeyFile.open(sys.argv[1], None)
print("locked", flush=True)
sys.stdin.read()
"""


def test_another_process_has_it_until_it_ends(tmp_path):
    path = saved(tmp_path / "me.dat")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], **pipes) as other:
        assert other.stdout.readline() == "locked\n"
        refused(path, "in use")
        other.send_signal(signal.SIGKILL)
        other.wait(WAIT)
        with KeyFile.open(path, never) as file:  # what the dead one left beside it does no harm
            assert file.key == KEY
            assert file.seconds_since_session == 0.0, "a session of the one that was killed may have ended just now"
    assert os.listdir(tmp_path) == ["me.dat"]
    with KeyFile.open(path, never) as file:
        assert file.seconds_since_session == math.inf


def test_what_was_left_by_one_that_was_killed_while_it_wrote_goes(tmp_path):
    path = saved(tmp_path / "me.dat")
    copy, other = tmp_path / ".me.dat.0123456789abcdef", tmp_path / ".me.dat.backup"
    for name in (copy, other):
        name.write_bytes(KEY.data)
    with KeyFile.open(path, never):
        assert copy.exists(), "it may be one of a program that runs"
    (tmp_path / ".me.dat.lock").touch()
    with KeyFile.open(path, never):
        assert not copy.exists()
    assert sorted(os.listdir(tmp_path)) == [".me.dat.backup", "me.dat"]


def test_a_forked_child_holds_nothing(tmp_path):
    path = saved(tmp_path / "me.dat")
    file = KeyFile.open(path, never)
    near, far = socket.socketpair()
    child = os.fork()
    if child == 0:
        try:
            near.close()
            file.close()  # of a copy that is none any more
            far.sendall(b"x")
            far.recv(1)
        finally:
            os._exit(0)
    far.close()
    with near:
        assert near.recv(1) == b"x"
        refused(path, "in use")  # the child has not released the parent's lock
        file._lock.forget()  # as if this process had died
        KeyFile.open(path, never).close()
    os.waitpid(child, 0)


def test_programs_that_are_started_do_not_inherit_it(tmp_path):
    with KeyFile.open(tmp_path / "me.dat", lambda: KEY) as file:
        (descriptor,) = file._lock._held
        assert not os.get_inheritable(descriptor)


def test_where_no_file_can_be_made_the_key_file_itself_is_locked(tmp_path, monkeypatch):
    """As in a directory of the system, or on a read-only disk."""
    path = saved(tmp_path / "me.dat")
    real = os.open

    def read_only(name, flags, *rest, **options):
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(name))
        return real(name, flags, *rest, **options)

    monkeypatch.setattr(os, "open", read_only)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with KeyFile.open(path, never) as file:
        assert file.key == KEY
        refused(path, "in use")
        assert os.listdir(tmp_path) == ["me.dat"]
    again = KeyFile.open(path, never)
    copy = os.dup(again._lock._held[0])  # as a child has that was just forked, and is not yet its program
    again.close()
    KeyFile.open(path, never).close()
    os.close(copy)
    path.unlink()
    refused(path, r"cannot lock by .*/\.me\.dat\.lock: Read-only file system", lambda: KEY)


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path):
    path = saved(tmp_path / "me.dat")
    (tmp_path / ".me.dat.lock").symlink_to(tmp_path / "elsewhere")
    refused(path, "cannot lock")
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    path = saved(tmp_path / "me.dat")
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        refused(path, "cannot lock: No locks available")
    KeyFile.open(path, never).close()


def test_one_that_is_forgotten_is_gone_with_its_owner(tmp_path):
    """Nothing here keeps it alive."""
    file = KeyFile.open(tmp_path / "me.dat", lambda: KEY)
    file.close()
    del file
    wait_until(lambda: not any(tmp_path in path.parents for path in key_file._locks.held()))
    assert repr(KeyFile(Path("x"), KEY, None)) == f"<KeyFile x, {KEY.b32}>"


# Names of sessions.


@pytest.fixture
def data_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data"


def test_the_keys_of_a_session_are_in_the_users_data_directory(data_home):
    path = path_of_session("web")
    assert path == data_home / "relay" / "i2p" / "web.dat"
    assert {mode(data_home), mode(path.parent.parent), mode(path.parent)} == {0o700}
    assert path_of_session("web") == path
    KeyFile.open(path, lambda: KEY).close()


@pytest.mark.parametrize("told", [None, "", "relative"])
def test_without_a_place_of_its_own_it_is_in_the_home(tmp_path, monkeypatch, told):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    if told is not None:
        monkeypatch.setenv("XDG_DATA_HOME", told)
    assert path_of_session("web") == tmp_path / ".local/share/relay/i2p/web.dat"


def test_a_user_without_a_home_is_told(monkeypatch):
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(relay.SAMError, match="no home directory; name a file"):
        path_of_session("web")


def test_directories_that_are_there_are_left_as_they_are(data_home):
    data_home.mkdir(mode=0o755)
    path_of_session("web")
    assert mode(data_home) == 0o755


def test_every_name_has_a_file_of_its_own(data_home):
    names = ["a", "A", "a/b", "a_b", "a:b", "..", ".", "../../etc/passwd", "ä", "\udc80", "x" * 64, "x" * 65, "x" * 200]
    names += [f"{'x' * 199}y", "a\0b", "a b", "a\nb", "-", "web.dat"]
    paths = [path_of_session(name) for name in names]
    assert len({str(path).lower() for path in paths}) == len(names)
    for path in paths:
        assert path.parent == data_home / "relay" / "i2p"
        assert path.name.isascii() and not path.name.startswith(".") and len(path.name) < 100
        with KeyFile.open(path, PrivateKey.generate) as file:
            assert read(path) == file.key


def test_no_name_and_no_directory_are_said(data_home):
    with pytest.raises(ValueError, match="without a name"):
        path_of_session("")
    data_home.write_text("a file")
    with pytest.raises(relay.SAMError, match=r"name a file for the keys \(--keys FILE, keys=FILE\)"):
        path_of_session("web")


# When a session of a key has ended.


def test_that_a_session_has_just_ended_is_told_to_whoever_takes_the_key_next(tmp_path, monkeypatch):
    path = tmp_path / "me.dat"
    with KeyFile.open(path, lambda: KEY) as file:
        assert file.seconds_since_session == math.inf, "there was none"
        written = path.stat().st_mtime_ns
        file.mark_session_ended()
    now = time.time()
    path.read_bytes()
    with KeyFile.open(path, never) as file:
        assert 0.0 <= file.seconds_since_session < WAIT
    assert path.stat().st_mtime_ns == written, "its content is what it was"
    monkeypatch.setattr(time, "time", lambda: now + 1000)
    with KeyFile.open(path, never) as file:
        assert 1000 <= file.seconds_since_session < 1000 + WAIT


def test_a_key_that_was_only_written_or_read_has_had_none(tmp_path):
    path = saved(tmp_path / "me.dat")
    for accessed, written in (
        (-10, 0),
        (0, -10),
        (0, 0),
        (1000, -1000),
    ):  # the last one by a clock that was set back since
        os.utime(path, (time.time() + accessed, time.time() + written))
        with KeyFile.open(path, never) as file:
            assert file.seconds_since_session == math.inf


def test_a_clock_that_was_set_back_does_no_harm(tmp_path, monkeypatch):
    path = saved(tmp_path / "me.dat")
    with KeyFile.open(path, never) as file:
        file.mark_session_ended()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 1000)
    with KeyFile.open(path, never) as file:
        assert file.seconds_since_session == 0.0


def test_a_file_that_is_gone_can_be_told_nothing(tmp_path):
    path = tmp_path / "me.dat"
    with KeyFile.open(path, lambda: KEY) as file:
        path.unlink()
        file.mark_session_ended()
    assert not path.exists()


def test_a_key_in_no_file():
    key = TransientKey(KEY)
    assert (key.key, key.path, key.seconds_since_session) == (KEY, None, math.inf)
    key.mark_session_ended()
    key.close()
    assert KEY.base64[600:610] not in repr(key)
