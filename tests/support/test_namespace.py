"""The network namespace of the tests."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import WAIT, fate_of_client, is_running, receive_exactly, wait_until
from namespace import LOOPBACK, Namespace, Unavailable

HERE = Path(__file__).parent
ADDRESS = "198.18.0.1"


@pytest.fixture(scope="module")
def namespace(spawner_thread):
    try:
        made = Namespace([ADDRESS])
    except Unavailable as error:
        pytest.skip(str(error))
    with made:
        yield made


@pytest.fixture
def inside(namespace):
    """A listener inside."""
    with namespace.socket() as listener:
        listener.settimeout(WAIT)
        listener.bind((LOOPBACK, 0))
        listener.listen(512)
        yield listener


@pytest.fixture
def door(namespace, inside):
    """An open one, to the listener."""
    made = namespace.door(inside.getsockname()[1])
    made.open()
    yield made
    made.shut()
    made.close()


@pytest.fixture
def ends(door, inside):
    """A client outside, and the connection inside that the door has made for it."""
    with socket.create_connection(door.address, WAIT) as client, inside.accept()[0] as far:
        far.settimeout(WAIT)
        yield client, far


def python(namespace, code, *arguments):
    """Return the output of a Python program inside."""
    argv = [sys.executable, "-c", code, *arguments]
    with namespace.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        said, failed = process.communicate(timeout=WAIT)
    assert process.returncode == 0, failed.decode()
    return said.decode().strip()


def test_inside_there_is_nothing_but_loopback(namespace):
    assert python(namespace, "import socket; print(socket.if_nameindex())") == "[(1, 'lo')]"


def test_the_machines_own_ports_are_out_of_reach(namespace, listener):
    with namespace.socket() as inside, pytest.raises(ConnectionRefusedError):
        inside.connect(listener.getsockname())


def test_a_program_can_enter(namespace):
    code = "import namespace, socket, sys; namespace.enter(int(sys.argv[1])); print(socket.if_nameindex())"
    argv = [sys.executable, "-c", code, str(namespace.pid)]
    entered = subprocess.run(argv, cwd=HERE, capture_output=True, text=True, timeout=WAIT, check=True)
    assert entered.stdout == "[(1, 'lo')]\n"


def test_a_missing_program_is_named(namespace):
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        namespace.run(["no-such-program"])


def test_a_problem_is_told():
    with pytest.raises(Unavailable, match="illegal IP address"):
        Namespace(["nowhere"])


def test_programs_end_with_it(namespace):
    with Namespace() as own:
        process = own.run(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE)
        grandchild = int(process.stdout.readline())
        spawned = own.spawn(["sleep", "60"], Path(os.devnull))
    assert process.returncode == -signal.SIGKILL
    wait_until(lambda: not is_running(grandchild) and not is_running(spawned))


def test_a_program_of_its_own_is_nobodys_child(namespace, tmp_path):
    output = tmp_path / "output"
    pid = namespace.spawn(["sh", "-c", "echo here; cat /proc/net/dev; exec sleep 60"], output)
    wait_until(lambda: output.exists() and "lo:" in output.read_text())
    assert is_running(pid)  # and the check for leaks does not see it
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_running(pid))


CHILD = """
import signal, sys
sys.path[:0] = sys.argv[1:]
from namespace import Namespace
made = Namespace()
print(made.pid, made.run(["sleep", "60"]).pid, made.spawn(["sleep", "60"], "/dev/null"), flush=True)
signal.pause()
"""


def test_all_of_it_ends_when_the_program_is_killed(namespace):
    argv = [sys.executable, "-c", CHILD, str(HERE), str(HERE.parents[1])]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        pids = list(map(int, process.stdout.readline().split()))
        assert len(pids) == 3 and all(map(is_running, pids))
        process.kill()
    wait_until(lambda: not any(map(is_running, pids)))


def test_a_door_resets_who_is_refused_inside(door, inside):
    inside.close()
    assert fate_of_client(door.address) == "reset"


def test_a_shut_door_refuses_and_stays_its_own(door, ends):
    for _ in range(5):
        door.shut()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(door.address, WAIT)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(door.address)
        door.open()
        socket.create_connection(door.address, WAIT).close()
    client, far = ends  # made before
    client.sendall(b"still there")
    assert receive_exactly(far, 11) == b"still there"
