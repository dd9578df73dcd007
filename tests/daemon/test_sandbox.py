"""The sandbox itself: rules, their enforcement by the kernel, and what is refused where there is no kernel for it."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
from typing import ClassVar

import pytest
from helpers import WAIT
from sandbox_rig import ABI, error_of, in_child, needs_landlock, needs_ports

from relay.daemon import sandbox
from relay.daemon.sandbox import Access, Rules, Sandbox, SandboxError, apply, merged

landlockpy = pytest.importorskip("landlockpy")

READ, WRITE, EXECUTE = Access.READ, Access.WRITE, Access.EXECUTE


class Ruleset:
    """A ``landlockpy.Ruleset`` without a kernel: it keeps what it is given, and refuses what the kernel does."""

    made: ClassVar[list[Ruleset]] = []
    abi = 7
    failure: OSError | None = None

    def __init__(self, *, handled_fs, handled_net):
        if self.failure is not None:
            raise self.failure
        self.handled_fs, self.handled_net = handled_fs, handled_net
        self.abi_version = self.abi
        self.paths, self.ports = {}, {}
        self.enforced = False
        self.made.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def allow_path(self, path, access):
        is_folder = os.path.isdir(path)
        os.stat(path)
        on_files = landlockpy.AccessFS(0b110 | 1 | 1 << 14)
        if not is_folder and access & ~on_files:
            raise landlockpy.LandlockError(errno.EINVAL, "Invalid argument")
        self.paths[str(path)] = access

    def allow_port(self, port, access):
        if not access & self.handled_net:
            raise landlockpy.LandlockError(errno.EINVAL, "Invalid argument")
        self.ports[port] = access

    def restrict(self):
        if self.enforced:
            raise RuntimeError("ruleset is already enforced")
        self.enforced = True


@pytest.fixture
def alone(monkeypatch):
    """The test's thread counts as the only one."""
    monkeypatch.setattr(sandbox.threading, "enumerate", lambda: [threading.current_thread()])


@pytest.fixture
def double(monkeypatch, alone):
    """The rule sets that were made, without a kernel."""
    monkeypatch.setattr(landlockpy, "Ruleset", Ruleset)
    monkeypatch.setattr(Ruleset, "made", [])
    return Ruleset


@pytest.mark.parametrize("kind", ["double", pytest.param("kernel", marks=needs_landlock)])
def test_the_double_refuses_what_the_kernel_refuses(kind, tmp_path):
    make = Ruleset if kind == "double" else landlockpy.Ruleset
    fs, net = landlockpy.AccessFS, landlockpy.AccessNet
    file = tmp_path / "file"
    file.touch()

    def outcomes():
        with make(handled_fs=fs.READ_FILE | fs.READ_DIR, handled_net=net.NONE) as made:
            return [
                error_of(made.allow_path, file, fs.READ_FILE),
                error_of(made.allow_path, tmp_path, fs.READ_FILE | fs.READ_DIR),
                error_of(made.allow_path, file, fs.READ_FILE | fs.READ_DIR),
                error_of(made.allow_path, tmp_path / "missing", fs.READ_FILE),
                error_of(made.restrict),
                made.enforced,
                made.abi_version > 0,
            ]

    assert in_child(outcomes) == ["done", "done", "EINVAL", "ENOENT", "done", True, True]


def test_rules_become_rights(double, tmp_path):
    file = tmp_path / "file"
    file.touch()
    applied = apply(Rules({str(tmp_path): READ | WRITE, str(file): READ | WRITE}, frozenset({22})))
    (made,) = double.made
    fs = landlockpy.AccessFS
    assert made.enforced
    assert made.paths[str(tmp_path)] & (fs.MAKE_REG | fs.REMOVE_FILE | fs.READ_DIR)
    assert made.paths[str(file)] == fs.READ_FILE | fs.WRITE_FILE | fs.TRUNCATE
    assert made.ports == {22: landlockpy.AccessNet.CONNECT_TCP}
    assert made.handled_fs & fs.REFER
    assert not made.handled_fs & (fs.IOCTL_DEV | fs.RESOLVE_UNIX)
    assert applied.abi == 7
    assert applied.limits_ports


def test_every_port_is_left_alone_if_one_tunnel_needs_that(double):
    applied = apply(Rules({}, None, "a proxy leads to every port"))
    assert not double.made[0].handled_net
    assert not applied.limits_ports
    assert "any port (a proxy leads to every port)" in str(applied)


def test_an_old_kernel_does_not_limit_ports(double, monkeypatch):
    monkeypatch.setattr(double, "abi", 3)
    applied = apply(Rules({}, frozenset({22})))
    assert not applied.limits_ports
    assert "any port (ports need ABI 4, Linux 6.7)" in str(applied)


def test_what_is_missing_is_left_out(double, tmp_path):
    apply(Rules({str(tmp_path / "missing"): READ}))
    assert double.made[0].paths == {}


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (landlockpy.UnsupportedError(errno.ENOSYS, "Function not implemented"), "this kernel has no Landlock"),
        (landlockpy.UnsupportedError(errno.EOPNOTSUPP, "Operation not supported"), "switched off"),
        (landlockpy.LandlockError(errno.EPERM, "Operation not permitted"), "the kernel refuses Landlock"),
    ],
)
def test_a_kernel_without_it_is_named(double, monkeypatch, failure, words):
    monkeypatch.setattr(double, "failure", failure)
    with pytest.raises(SandboxError, match=words):
        apply(Rules({}))


def test_a_missing_package_is_named(alone, monkeypatch):
    monkeypatch.setitem(sys.modules, "landlockpy", None)
    with pytest.raises(SandboxError, match="landlockpy is not installed"):
        apply(Rules({}))


def test_a_second_thread_would_escape():
    """It is rejected before anything is restricted."""
    stop = threading.Event()
    other = threading.Thread(target=stop.wait, name="other")
    other.start()
    try:
        with pytest.raises(SandboxError, match=r"other threads run already \(.*other"):
            apply(Rules({}))
    finally:
        stop.set()
        other.join(WAIT)


# What the kernel does. Each runs in a process of its own.


@needs_landlock
def test_only_the_folders_of_the_rules_can_be_used(tmp_path):
    allowed, readable, other = (tmp_path / name for name in ("allowed", "readable", "other"))
    for folder in (allowed, readable, other):
        folder.mkdir()
        (folder / "file").write_text("text")

    def inside():
        applied = apply(Rules({str(allowed): READ | WRITE, str(readable): READ}, None))
        os.replace(allowed / "file", allowed / "renamed")  # within one folder
        found = [error_of(open, folder / "file") for folder in (readable, other)]
        found += [error_of(open, folder / "new", "w") for folder in (allowed, readable, other)]
        found.append(error_of(os.mkfifo, allowed / "fifo"))
        return found, [applied.allows(str(folder / "new"), WRITE) for folder in (allowed, readable, other)]

    found, allows = in_child(inside)
    assert found == ["done", "EACCES", "done", "EACCES", "EACCES", "EACCES"]
    assert allows == [True, False, False]


@needs_landlock
def test_a_unix_socket_is_made_and_removed_where_relay_writes(tmp_path):
    def inside():
        apply(Rules({str(tmp_path): READ | WRITE}, None))
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(tmp_path / "socket"))
        os.unlink(tmp_path / "socket")
        return True

    assert in_child(inside)


@needs_ports
def test_only_the_ports_of_the_rules_are_connected_to(serve):
    places = [serve(lambda client: None).address for _ in range(2)]

    def inside():
        apply(Rules({}, frozenset({places[0][1]})))
        socket.create_server(("127.0.0.1", 0)).close()  # listening is not restricted
        found = []
        for place in places:
            with socket.socket() as client:  # create_connection() may import a module
                found.append(error_of(client.connect, place))
        return found

    assert in_child(inside) == ["done", "EACCES"]


@needs_landlock
def test_threads_and_children_are_restricted_too(tmp_path):
    secret = tmp_path / "secret"
    secret.touch()
    system = {
        path: READ | EXECUTE for path in ("/bin", "/lib", "/lib64", "/usr", sys.base_prefix) if os.path.exists(path)
    }

    def inside():
        apply(Rules({**system, "/dev/null": READ | WRITE}, None))
        found = []
        thread = threading.Thread(target=lambda: found.append(error_of(open, secret)))
        thread.start()
        thread.join(WAIT)
        child = subprocess.run(["cat", str(secret)], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=WAIT)
        return [*found, child.returncode, child.stderr.decode()]

    thread, status, said = in_child(inside)
    assert thread == "EACCES"
    assert status == 1
    assert "Permission denied" in said


@needs_landlock
def test_a_program_can_be_started_only_with_a_rule():
    def inside():
        apply(Rules({"/": READ, "/dev/null": READ | WRITE}, None))
        return error_of(subprocess.run, ["/bin/true"])

    assert in_child(inside) == "EACCES"


# What a reload asks.


def test_a_file_that_was_replaced_is_another_one(tmp_path):
    """As it is for the kernel; in a folder of the rules it may be used all the same."""
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.touch()
    folder.mkdir()
    (folder / "file").touch()
    applied = Sandbox(Rules({str(file): READ, str(folder): READ}), ABI)
    assert applied.allows(str(file), READ)
    for place in (file, folder / "file"):
        (tmp_path / "new").touch()
        os.replace(tmp_path / "new", place)
    assert not applied.allows(str(file), READ)
    assert applied.allows(str(folder / "file"), READ)
    assert applied.allows(str(folder / "missing"), READ)
    assert not applied.allows(str(folder / "file"), WRITE)


def test_what_the_sandbox_does_not_allow_is_listed(tmp_path):
    applied = Sandbox(Rules({str(tmp_path): READ}, frozenset({22})), 7)
    assert applied.problems(Rules({str(tmp_path / "more"): READ}, frozenset({22}))) == []
    assert applied.problems(Rules({str(tmp_path): READ | WRITE, "/": READ}, frozenset({22, 443, 80}))) == [
        f"write to {tmp_path}",
        "read /",
        "connect to port 80",
        "connect to port 443",
    ]
    assert applied.problems(Rules({}, None)) == ["connect to every port"]
    assert Sandbox(Rules({}, None), 7).problems(Rules({}, frozenset({1}))) == []


def test_rules_are_merged():
    one, two = Rules({"/a": READ}, frozenset({1})), Rules({"/a": WRITE, "/b": READ}, frozenset({2}))
    assert merged([one, two]) == Rules({"/a": READ | WRITE, "/b": READ}, frozenset({1, 2}))
    assert merged([one, Rules({}, None, "why"), two]) == Rules({"/a": READ | WRITE, "/b": READ}, None, "why")


def test_the_line_names_what_is_written_and_the_ports(tmp_path):
    line = str(Sandbox(Rules({str(tmp_path): READ | WRITE, "/dev/null": READ | WRITE}, frozenset({443, 22})), 7))
    assert line == (
        f"Landlock ABI 7; relay reads its own files only, writes to {tmp_path}, connects to the ports 22, 443 only"
    )
    assert "writes to no file" in str(Sandbox(Rules({}, None), 7))
