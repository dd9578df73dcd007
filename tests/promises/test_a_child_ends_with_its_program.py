"""A child ends with the program that started it, also when that is killed, and never before."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
from helpers import WAIT, ending, receive_exactly

import relay

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has pidfd_open and PR_SET_PDEATHSIG")

SPAWN = """
import sys, relay
tunnel = relay.spawn(sys.argv[1], sys.argv[2], name="of a program")
print(tunnel.pid, tunnel.address if isinstance(tunnel.address, str) else tunnel.address[1], flush=True)
"""
WORKERS = """
import sys, relay
tunnel = relay.spawn(sys.argv[1], sys.argv[2], workers=2, name="of a program")
print(*tunnel.pids, tunnel.address[1], flush=True)
"""
HEIR = """
import os, subprocess
for number in map(int, os.listdir("/proc/self/fd")):
    try:
        os.set_inheritable(number, True)
    except OSError:
        pass
heir = subprocess.Popen(["sleep", "60"], close_fds=False)
print(heir.pid, flush=True)
"""
STAY = "\nsys.stdin.read()\n"


class Program:
    """A Python program in a process group of its own that says things on its standard output."""

    def __init__(self, code, *args, python=(), **options):
        argv = [sys.executable, *python, "-c", textwrap.dedent(code), *args]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.process = subprocess.Popen(argv, **{**pipes, "start_new_session": True, "text": True, **options})

    def line(self):
        """The next words that it says."""
        line = self.process.stdout.readline().split()
        assert line, self.process.stderr.read()
        return line

    def end(self):
        """Let it end by itself; returns what it still said, on both."""
        return self.process.communicate(timeout=WAIT)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(WAIT)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(OSError):
                pipe.close()


@contextlib.contextmanager
def watched(pid):
    """Gives a function that waits for the end of a process which is not our child, and says whether it came."""
    try:
        descriptor = os.pidfd_open(int(pid))
    except ProcessLookupError:  # it came already
        yield lambda seconds=WAIT: True
        return
    try:
        yield lambda seconds=WAIT: bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        os.close(descriptor)


def connect(address):
    """A client that has been served."""
    if address.isdigit():
        client = socket.create_connection(("127.0.0.1", int(address)), timeout=WAIT)
    else:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(WAIT)
        client.connect(address)
    client.sendall(b"ping")
    assert receive_exactly(client, 4) == b"ping"
    return client


of_each_kind = pytest.mark.parametrize("code", [SPAWN, WORKERS], ids=["one process", "workers"])


@of_each_kind
def test_a_killed_program_takes_its_processes_with_it(target, code):
    with Program(code + STAY, ":0", target) as program, contextlib.ExitStack() as stack:
        *pids, address = program.line()
        ended = [stack.enter_context(watched(pid)) for pid in pids]
        client = stack.enter_context(connect(address))
        program.process.kill()
        assert all(one() for one in ended)
        assert ending(client) == "reset"  # a transfer that was cut never looks complete


def test_the_file_of_its_socket_goes_too(target, tmp_path):
    path = tmp_path / "socket"
    with Program(SPAWN + STAY, f"unix://{path}", target) as program:
        pid, address = program.line()
        with watched(pid) as ended, connect(address):
            program.process.kill()
            assert ended()
    assert not path.exists()


@of_each_kind
def test_also_when_another_process_holds_their_control_sockets(target, code):
    """The end of file of those does not come then: the kernel's parent-death signal must do.

    The workers have ignored signals before, as those of a service manager to all processes of a service.
    """
    with Program(code + HEIR + STAY, ":0", target) as program, contextlib.ExitStack() as stack:
        *pids, address = program.line()
        [heir] = program.line()
        heir_ended, *ended = [stack.enter_context(watched(pid)) for pid in (heir, *pids)]
        for pid in pids if code is WORKERS else ():
            os.kill(int(pid), signal.SIGTERM)
        client = stack.enter_context(connect(address))
        program.process.kill()
        assert all(one() for one in ended)
        assert ending(client) == "reset"
        assert not heir_ended(0)


@of_each_kind
def test_a_program_that_closes_nothing_ends_cleanly(target, code):
    with Program(code, ":0", target, python=["-X", "dev", "-W", "error"]) as program, contextlib.ExitStack() as stack:
        *pids, _ = program.line()
        ended = [stack.enter_context(watched(pid)) for pid in pids]
        assert program.end() == ("", "")
        assert all(one() for one in ended)
        assert program.process.returncode == 0


def test_its_last_log_records_arrive_before_the_program_ends(target):
    log = "import logging\nlogging.basicConfig(level=logging.INFO, format='%(levelname)s %(message)s')"
    with Program(log + SPAWN + STAY, ":0", target) as program:
        _, address = program.line()
        with connect(address):
            _, said = program.end()
    assert said.startswith("INFO of a program: ")
    assert said.count("\n") == 1
    assert ": closed after" in said


def test_an_interrupt_in_the_terminal_reaches_the_program_alone(target):
    code = """
    import signal
    signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
    print("ready", flush=True)
    """
    with Program(SPAWN + textwrap.dedent(code) + STAY, ":0", target) as program:
        pid, address = program.line()
        assert program.line() == ["ready"]
        with watched(pid) as ended, connect(address) as client:
            os.killpg(program.process.pid, signal.SIGINT)
            assert program.line() == ["interrupted"]
            client.sendall(b"still")
            assert receive_exactly(client, 5) == b"still"
            assert not ended(0)


def test_a_fork_of_the_program_changes_nothing(target):
    code = """
    import os, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of each fork beside threads
    pid = os.fork()
    if pid == 0:
        try:
            tunnel.stats()
        except relay.RelayError:
            tunnel.close()
            tunnel.join()
            with relay.spawn(":0", sys.argv[2]) as own:
                own.stats()
            os._exit(7)
        os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), tunnel.stats().accepted, flush=True)
    tunnel.close()
    """
    with Program(SPAWN + textwrap.dedent(code), ":0", target) as program:
        pid, address = program.line()
        with watched(pid) as ended, connect(address):
            assert program.line() == ["7", "1"]
            assert program.end() == ("", "")
            assert ended()


def test_without_standard_input_output_and_error(target, tmp_path):
    """Their numbers are free then, and what is opened first gets them."""
    report = tmp_path / "report"
    code = f"""
    import os, sys
    for number in (0, 1, 2):
        os.close(number)
    import relay
    tunnel = relay.spawn(relay.listen(":0"), {target!r})
    with open({str(report)!r} + ".new", "w") as file:
        file.write(f"{{tunnel.pid}} {{tunnel.address[1]}}")
    os.rename({str(report)!r} + ".new", {str(report)!r})
    tunnel.join()
    """
    with Program(code) as program:
        program.process.stdout.read()  # up to its closing
        deadline = select.poll()
        while not report.exists():
            assert program.process.poll() is None
            deadline.poll(5)
        pid, address = report.read_text().split()
        with watched(pid) as ended:
            assert [os.readlink(f"/proc/{pid}/fd/{number}") for number in (0, 1, 2)] == [os.devnull] * 3
            with connect(address) as client:
                client.sendall(b"again")
                assert receive_exactly(client, 5) == b"again"
            program.process.kill()
            assert ended()


def test_nothing_is_told_in_arguments_or_environment(target):
    with relay.spawn(":0", target, name="whisper") as tunnel:
        seen = Path(f"/proc/{tunnel.pid}/cmdline").read_bytes() + Path(f"/proc/{tunnel.pid}/environ").read_bytes()
        assert target.encode() not in seen
        assert b"whisper" not in seen
        descriptors = Path(f"/proc/{tunnel.pid}/fd")
        assert [os.readlink(descriptors / number) for number in "01"] == [os.devnull] * 2
        assert os.getsid(tunnel.pid) == tunnel.pid


def test_from_a_zip_file_in_a_hostile_directory(target, tmp_path):
    """The child runs the same ``relay`` as the program, and no module of the directory that it happens to be in."""
    home = Path(relay.__file__).parent
    archive = tmp_path / "relay.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in home.rglob("*.py"):
            file.write(path, path.relative_to(home.parent))
    here = tmp_path / "here"
    here.mkdir()
    for name in ("json", "socket", "ctypes", "relay"):
        (here / f"{name}.py").write_text("raise SystemExit('hostile')")
    code = f"import sys; sys.path.insert(0, {str(archive)!r})" + SPAWN + "print(relay.__file__, flush=True)" + STAY
    with Program(code, ":0", target, python=["-P", "-S"], cwd=here) as program:
        _, address = program.line()
        assert program.line() == [f"{archive}/relay/__init__.py"]
        connect(address).close()


def test_many_side_by_side_leave_nothing(echo_server):
    tunnels = [relay.spawn(":0", "{}:{}".format(*echo_server.address)) for _ in range(10)]
    for tunnel in tunnels:
        connect(str(tunnel.address[1])).close()
    for tunnel in tunnels:
        tunnel.close()
    for tunnel in tunnels:
        with pytest.raises(ChildProcessError):
            os.waitpid(tunnel.pid, os.WNOHANG)
        assert not Path(f"/proc/{tunnel.pid}").exists()
