"""``relay.transports.port.processes``: whose a socket is, as ``/proc`` says."""

import os
import socket
import subprocess
import sys

import pytest

from relay.transports.port import processes
from relay.transports.port.processes import HiddenProcessError, has_socket, is_below, listens_at, parent_in

HOLDER = """
import os, socket, sys
listening = socket.socket()
for _ in range(int(sys.argv[1])):
    if os.fork():
        os.wait()
        os._exit(0)
print(os.getpid(), os.fstat(listening.fileno()).st_ino, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder():
    """A program that has a socket, in a child of a child of it."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", HOLDER, "2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        yield process, *map(int, process.stdout.readline().split())
        process.stdin.close()


def test_a_socket_of_a_child_of_a_child(holder):
    process, child, inode = holder
    assert has_socket(inode, os.getpid())
    assert has_socket(inode, process.pid)  # its own has one as well
    assert not has_socket(inode, child)  # which has no children
    assert is_below(child, process.pid) and is_below(child, os.getpid()) and is_below(process.pid, os.getpid())
    assert not is_below(os.getpid(), process.pid) and not is_below(child, child)
    with socket.socket() as other:
        assert not has_socket(os.fstat(other.fileno()).st_ino, os.getpid())  # those of the root do not count


def test_a_process_that_hides_what_it_has(holder, monkeypatch):
    _, child, inode = holder
    look = os.listdir

    def hide(path):
        if path == f"/proc/{child}/fd":
            raise PermissionError
        return look(path)

    monkeypatch.setattr(processes.os, "listdir", hide)
    assert has_socket(inode, os.getpid())  # another one has it as well
    with pytest.raises(HiddenProcessError, match=f"process {child} of it belongs to another user"):
        has_socket(1, os.getpid())


def test_a_process_that_has_ended():
    process = subprocess.Popen(["true"])
    process.wait()
    assert not has_socket(1, process.pid)
    assert not is_below(process.pid, os.getpid())


@pytest.mark.parametrize(
    ("status", "parent"),
    [
        (b"7 (cat) S 5 7 7", 5),
        (b"7 (a) R 1 (b) S 5 7", 5),  # the name has parentheses
        (b"7 (\n) ) S 5 7", 5),
        (b"", None),
        (b"7 (cat) S", None),
        (b"7 (cat) S x 7", None),
        (b"7 (cat) S 99999999999999999999 7", None),
    ],
)
def test_the_parent_of_a_process(status, parent):
    assert parent_in(status) == parent


LINE = "0000000000000000: 00000002 00000000 {} 0001 01 {} {}"


@pytest.mark.parametrize(
    ("line", "inode"),
    [
        (LINE.format("00010000", "4711", "/run/a b"), 4711),
        (LINE.format("00010000", "4711", "/run/a"), None),
        (LINE.format("00000000", "4711", "/run/a b"), None),  # a connection
        (LINE.format("x", "4711", "/run/a b"), None),
        (LINE.format("00010000", "-1", "/run/a b"), None),
        (LINE.format("00010000", "9" * 20, "/run/a b"), None),
        ("/run/a b", None),
        ("", None),
    ],
)
def test_the_socket_that_listens_at_a_path(line, inode):
    assert listens_at("/run/a b", f"Num RefCount …\n{line}\n") == inode


def test_a_real_table(tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as made, open("/proc/net/unix") as table:
        made.bind(path)
        assert listens_at(path, table.read()) is None
        made.listen()
        table.seek(0)
        assert listens_at(path, table.read()) == os.fstat(made.fileno()).st_ino
