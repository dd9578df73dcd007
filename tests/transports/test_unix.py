"""``relay.unix``: connects to Unix sockets."""

import contextlib
import errno
import fcntl
import grp
import hashlib
import itertools
import os
import socket
import stat
import sys

import pytest
from helpers import WAIT, echo, in_child, receive_all, send_and_end

import relay
from relay.errors import AddressError
from relay.transports import unix
from relay.transports.tcp import Inherited
from relay.transports.unix import listen_unix


def test_it_connects(serve, tmp_path):
    server = serve(echo, str(tmp_path / "socket"))
    for path in (tmp_path / "socket", str(tmp_path / "socket")):
        with relay.unix(path)() as stream:
            stream.socket.settimeout(WAIT)
            send_and_end(stream.socket, b"hello")
            assert receive_all(stream.socket) == b"hello"
    assert server.address == str(tmp_path / "socket")


def test_a_relative_path_is_taken_from_the_directory_at_the_call(serve, tmp_path, monkeypatch):
    serve(echo, str(tmp_path / "socket"))
    monkeypatch.chdir(tmp_path)
    factory = relay.unix("socket")
    monkeypatch.chdir("/")
    factory().close()
    assert factory.target == f"unix://{tmp_path}/socket"


def test_a_missing_path_is_unreachable(tmp_path):
    with pytest.raises(relay.ConnectError, match=f"^unix://{tmp_path}/none: .*No such file") as failure:
        relay.unix(tmp_path / "none")()
    assert failure.value.reason == "unreachable"


def test_a_path_where_nobody_listens_is_refused(tmp_path):
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
    with pytest.raises(relay.ConnectError, match="connection refused") as failure:
        relay.unix(tmp_path / "socket")()
    assert failure.value.reason == "refused"


@pytest.mark.parametrize("path", ["", "a\nb", "/" + "x" * 120])
def test_a_bad_value_is_a_value_error_at_once(path):
    with pytest.raises(ValueError, match="^path: "):
        relay.unix(path)


@pytest.mark.parametrize("path", [None, 7, b"/run/x"])
def test_a_bad_type_is_a_type_error_at_once(path):
    with pytest.raises(TypeError, match="^path: "):
        relay.unix(path)


# Listening: whose file it is, who may use it, and when it goes.


@pytest.fixture
def path(tmp_path):
    return tmp_path / "socket"


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


def of_group(found, group):
    return os.stat_result((*found[:5], group, *found[6:10]))  # the mode, the device and the number are in these, too


def reach(path):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(WAIT)
        client.connect(str(path))


def make_stale(path):
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def test_it_listens_and_removes_its_file(path):
    with listen_unix(path) as listening:
        assert listening.getsockname() == str(path)
        reach(path)
    assert not path.exists()
    listening.close()


@pytest.mark.parametrize("linux", [True, False])
def test_its_owner_alone_may_use_it_from_its_first_moment(path, monkeypatch, linux):
    seen = []
    bind = unix.UnixListener.bind

    def watched(self, address):
        bind(self, address)
        seen.append(mode(path))

    monkeypatch.setattr(unix, "_LINUX", linux)
    monkeypatch.setattr(unix.UnixListener, "bind", watched)
    before = os.umask(0)
    try:
        with listen_unix(path):
            assert seen == [0o600]
            assert mode(path) == 0o600
            assert os.umask(0) == 0
    finally:
        os.umask(before)


@pytest.mark.parametrize(("given", "expected"), [(None, 0o600), ("0660", 0o660), ("666", 0o666), ("0200", 0o200)])
def test_other_users_may_use_it_if_its_mode_says_so(path, given, expected):
    before = os.umask(0o077)
    try:
        with listen_unix(path, given) as listening:
            assert mode(path) == expected
            reach(path)
            listening.accept()[0].close()
    finally:
        os.umask(before)


def test_it_has_its_rights_before_it_listens(path, monkeypatch):
    seen = []
    monkeypatch.setattr(unix.UnixListener, "listen", lambda self, backlog: seen.append(mode(path)))
    listen_unix(path, "0660").close()
    assert seen == [0o660]


OTHER_GROUP = "4711" if os.geteuid() == 0 else str(os.getgid())


@contextlib.contextmanager
def meanwhile(path, swap, number):
    """Replace the socket before the number-th call of a function of C, as all system calls are.

    Yields the modes and the groups that it had before each call.
    """
    seen = []

    def watch(frame, event, argument):
        if event == "c_call" and path.is_socket() and not path.is_symlink():
            found = os.lstat(path)
            seen.append((stat.S_IMODE(found.st_mode), found.st_gid))
            if len(seen) == number:
                swap()

    sys.setprofile(watch)
    try:
        yield seen
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("by", ["link", "name of another socket", "other directory"])
@pytest.mark.parametrize("when", ["it listens", "it is taken over", "a reload changes it"])
def test_no_other_file_gets_its_rights_whenever_it_is_replaced(tmp_path, when, by):
    """The owner of its directory may replace it at any moment, which is tried at each one."""
    victims = tmp_path / "victims"
    victims.mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(victims / "socket"))
        other.listen()
        (victims / "file").touch()
        for number in itertools.count(1):
            for victim in victims.iterdir():
                victim.chmod(0o600)
            before = {victim: os.stat(victim).st_gid for victim in victims.iterdir()}
            folder = tmp_path / str(number)
            folder.mkdir()
            path = folder / "socket"

            def swap(folder=folder, path=path):
                if by == "other directory":
                    folder.rename(folder.with_suffix(".old"))
                    folder.symlink_to(victims)
                elif by == "link":
                    path.unlink()
                    path.symlink_to(victims / "file")
                else:
                    os.link(victims / "socket", folder / "same")
                    (folder / "same").rename(path)

            with contextlib.ExitStack() as stack:
                if when != "it listens":
                    old = stack.enter_context(listen_unix(path))
                seen = stack.enter_context(meanwhile(path, swap, number))
                with contextlib.suppress(OSError):
                    if when == "it listens":
                        stack.enter_context(listen_unix(path, "0666", OTHER_GROUP))
                    elif when == "it is taken over":
                        new = stack.enter_context(listen_unix(path, "0666", OTHER_GROUP, inherited=Inherited([old])))
                        new.adopt([*old.file_id])
                    else:
                        old.change_rights("0666", OTHER_GROUP)
                sys.setprofile(None)
                assert {victim: os.stat(victim).st_gid for victim in victims.iterdir()} == before, number
                assert [mode(victim) for victim in victims.iterdir()] == [0o600, 0o600], number
                assert {rights for rights in seen if rights[0] != 0o600} <= {(0o666, int(OTHER_GROUP))}
                if len(seen) < number:  # nothing was replaced in this round
                    assert mode(path) == 0o666
                    break


def test_a_directory_in_which_others_may_replace_it_is_a_warning(path, caplog):
    path.parent.chmod(0o1777)
    listen_unix(path).close()
    assert caplog.messages == []
    path.parent.chmod(0o770)
    listen_unix(path).close()
    problem = f"others can write to {path.parent} (mode 0770); chmod go-w it, or choose another path"
    assert caplog.messages == [f"unix://{path}: another user can replace the socket: {problem}"]


@pytest.mark.parametrize("group", [str(os.getgid()), f"{os.getgid():011}", grp.getgrgid(os.getgid()).gr_name])
def test_a_group_is_a_name_or_a_number(path, group):
    with listen_unix(path, "0660", group):
        assert os.stat(path).st_gid == os.getgid()


def test_a_group_that_there_is_not(path):
    with pytest.raises(
        AddressError, match="^unix://.*/socket: group: this machine has no group no-such-group; see getent group$"
    ):
        listen_unix(path, group="no-such-group")
    assert not path.exists()


@pytest.mark.parametrize("number", ["4294967295", "4294967296", "99999999999", "9" * 5000])
def test_a_number_that_no_group_has(path, number):
    with pytest.raises(
        AddressError, match="^unix://.*/socket: group: [0-9]+…? is no number of a group; the last one is 4294967294$"
    ):
        listen_unix(path, group=number)
    assert not path.exists()


def test_a_group_that_it_may_not_have_leaves_no_file(path, monkeypatch):
    def chown(*_, **__):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chown", chown)
    with pytest.raises(
        PermissionError, match=r"Operation not permitted; only its members may give it the group 'adm'$"
    ):
        listen_unix(path, group="adm")
    assert not path.exists()


@pytest.mark.parametrize(("given", "expected"), [(None, 0o600), ("0660", 0o660)])
def test_an_inherited_one_has_its_rights_once_the_file_is_its_own(path, given, expected, caplog):
    with listen_unix(path, "0606") as old:
        new = listen_unix(path, given, inherited=Inherited([old]))
        assert mode(path) == 0o606, "the other process may go on"
        old.disown()
        new.adopt()
        assert mode(path) == expected
        path.unlink()
        path.touch(0o640)
        new.borrow(str(path), unix._Rights(0o600, -1))
        path.rename(path.with_suffix(".old"))
        path.touch(0o644)
        new.adopt()
        assert mode(path) == 0o644, "it is another file"
        new.close()
    assert caplog.text == ""


@pytest.mark.parametrize("folder_mode", [0o700, 0o2700])
def test_an_inherited_one_without_a_group_has_that_of_a_new_file(path, folder_mode, monkeypatch):
    groups = []
    path.parent.chmod(folder_mode)
    with listen_unix(path, "0660") as old:
        new = listen_unix(path, "0660", inherited=Inherited([old]))
        usual = os.stat(path).st_gid
        monkeypatch.setattr(os, "getegid", lambda: usual if folder_mode & stat.S_ISGID == 0 else -2)
        for facts in ("lstat", "fstat"):
            function = getattr(os, facts)
            monkeypatch.setattr(os, facts, lambda name, function=function: of_group(function(name), 4711))
        monkeypatch.setattr(os, "chown", lambda path, user, group, **_: groups.append((user, group)))
        old.disown()
        new.adopt()
        monkeypatch.undo()
        new.close()
    assert groups == [(-1, usual)]


def test_an_inherited_one_that_may_not_have_its_rights_says_so(path, monkeypatch, caplog):
    def chmod(*_, **__):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    with listen_unix(path) as old:
        new = listen_unix(path, "0660", inherited=Inherited([old]))
        monkeypatch.setattr(os, "chmod", chmod)
        old.disown()
        new.adopt()
        new.close()
    assert caplog.messages == [f"unix://{path}: its mode and group stay as they were: Operation not permitted"]


def test_a_stale_file_is_replaced(path):
    make_stale(path)
    with listen_unix(path):
        reach(path)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_file_at_which_somebody_answers_is_left_alone(path, kind):
    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(str(path))
        if kind == socket.SOCK_STREAM:
            other.listen()
        with pytest.raises(OSError, match=f"unix://{path}: another program listens there") as failure:
            listen_unix(path)
        assert failure.value.errno == errno.EADDRINUSE
        assert path.exists()


@pytest.mark.parametrize("denied", ["connect", "unlink"])
def test_a_socket_of_another_user_is_not_said_to_have_a_program_or_a_wrong_group(path, denied, monkeypatch):
    make_stale(path)
    if denied == "connect":
        monkeypatch.setattr(socket.socket, "connect_ex", lambda *_: errno.EACCES)
    else:
        unlink = os.unlink

        def refuse(name):
            if name == str(path):
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
            unlink(name)

        monkeypatch.setattr(os, "unlink", refuse)
    words = "a socket lies there that this user may not use or replace; remove it, or use another path$"
    with pytest.raises(OSError, match=f"^.*unix://{path}: {words}") as failure:
        listen_unix(path, "0660", str(os.getgid()))
    assert failure.value.errno == errno.EADDRINUSE
    assert path.exists()


def test_a_listener_with_a_full_backlog_is_left_alone(path):
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as client:
        other.bind(str(path))
        other.listen(0)
        client.connect(str(path))
        with pytest.raises(OSError, match="another program listens there"):
            listen_unix(path)


@pytest.mark.parametrize("make", [lambda path: path.write_text("mine"), lambda path: path.symlink_to("nowhere")])
def test_a_file_that_is_no_socket_is_left_alone(path, make):
    make(path)
    before = os.lstat(path)
    with pytest.raises(OSError, match="a file that is not a socket lies there; it is left alone"):
        listen_unix(path)
    assert os.lstat(path) == before


def test_a_missing_directory_says_where(tmp_path):
    with pytest.raises(
        OSError, match=f"unix://{tmp_path}/none/socket: No such file.*; make its directory first$"
    ) as failure:
        listen_unix(tmp_path / "none" / "socket")
    assert failure.value.errno == errno.ENOENT


def test_of_two_that_find_it_stale_one_alone_replaces_it(path, monkeypatch):
    make_stale(path)
    refused = []

    def unlink(name):
        if name != str(path):
            return os_unlink(name)
        # The other one comes after the file was found stale, and before it is gone.
        with pytest.raises(OSError, match="another program is about to listen there") as failure:
            listen_unix(path)
        refused.append(failure.value.errno)
        return os_unlink(name)

    os_unlink = os.unlink
    monkeypatch.setattr(os, "unlink", unlink)
    with listen_unix(path) as listening:
        monkeypatch.undo()
        assert refused == [errno.EADDRINUSE]
        assert listening.getsockname() == str(path)
        reach(path)


def test_nobody_who_may_not_write_there_keeps_it_from_starting(path):
    """Neither an abstract address nor a lock on the directory, both of which anybody can have, is in the way."""
    digest = hashlib.sha256(os.fsencode(path)).hexdigest().encode()
    folder = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(b"\0relay listens at " + digest)
        fcntl.flock(folder, fcntl.LOCK_EX)
        with listen_unix(path):
            reach(path)
    os.close(folder)


def test_the_lock_is_its_owners_alone_and_goes(path, monkeypatch):
    seen = []
    bind = unix.UnixListener.bind

    def watched(self, address):
        bind(self, address)
        seen.extend((name, mode(path.parent / name)) for name in os.listdir(path.parent) if name != "socket")

    monkeypatch.setattr(unix.UnixListener, "bind", watched)
    with listen_unix(path):
        assert seen == [(".socket.relay-lock", 0o600)]
        assert os.listdir(path.parent) == ["socket"]
        with pytest.raises(OSError, match="another program listens there"):
            listen_unix(path)
        assert os.listdir(path.parent) == ["socket"]


def test_the_lock_of_a_killed_program_is_taken_over(path):
    (path.parent / ".socket.relay-lock").touch(0o600)
    with listen_unix(path):
        assert os.listdir(path.parent) == ["socket"]


@pytest.mark.parametrize("make", [lambda lock: lock.touch(), lambda lock: lock.mkdir()], ids=["held", "not a file"])
@pytest.mark.parametrize("other", [False, True], ids=["ours", "another's"])
def test_a_lock_that_cannot_be_had(path, monkeypatch, make, other):
    """It counts only if it is this user's."""
    lock = path.parent / ".socket.relay-lock"
    make(lock)
    descriptor = os.open(lock, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        if other:
            monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
            with listen_unix(path):
                reach(path)
        else:
            with pytest.raises(OSError, match="another program is about to listen there|Is a directory"):
                listen_unix(path)
            assert not path.exists()
    finally:
        os.close(descriptor)
    assert lock.exists()


def test_a_lock_that_was_removed_meanwhile_is_none(path, monkeypatch):
    lock = path.parent / ".socket.relay-lock"
    flock, bind, calls, held = fcntl.flock, unix.UnixListener.bind, [], []

    def slow(descriptor, operation):
        if not calls:
            lock.unlink()  # its last holder is done
        calls.append(operation)
        flock(descriptor, operation)

    def watched(self, address):
        held.append(lock.exists())
        bind(self, address)

    monkeypatch.setattr(fcntl, "flock", slow)
    monkeypatch.setattr(unix.UnixListener, "bind", watched)
    with listen_unix(path):
        assert held == [True]
        assert os.listdir(path.parent) == ["socket"]


def test_a_file_that_took_its_place_is_not_removed(path):
    listening = listen_unix(path)
    path.unlink()
    with listen_unix(path) as other:
        listening.close()
        assert path.exists()
        reach(path)
        assert other.fileno() >= 0


def test_a_file_that_is_gone_is_no_failure(path):
    listening = listen_unix(path)
    path.unlink()
    listening.close()


def test_a_forked_child_does_not_remove_it(path):
    with listen_unix(path) as listening:
        assert in_child(listening.close) == 0
        reach(path)


def test_what_it_accepts_is_a_plain_socket(path):
    with listen_unix(path) as listening, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        accepted, _ = listening.accept()
        with accepted:
            assert type(accepted) is socket.socket


@pytest.mark.parametrize("bad", ["", "a\nb", "/" + "x" * 120])
def test_a_bad_path_is_a_value_error(bad):
    with pytest.raises(ValueError, match="^path: "):
        listen_unix(bad)
