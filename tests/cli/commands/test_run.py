"""``relay run``, as its users run it: its words, what the program finds, its status, and mistakes."""

import ast
import os
import signal
import socket
import subprocess
import sys
import tempfile

import pytest
from command_rig import commands, run, tunnel
from helpers import WAIT, black_hole, receive_all
from sshd import server_url

PYTHON = [sys.executable, "-S", "-c"]
SEE = "import os, sys; print((sys.argv[1:], {n: v for n, v in os.environ.items() if n.startswith('RELAY_')}))"


@pytest.fixture(autouse=True)
def folders(monkeypatch):
    """A folder for private directories, of which none may be left."""
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp") as made:
        monkeypatch.setenv("TMPDIR", made)
        yield
        assert os.listdir(made) == []


@pytest.fixture
def start():
    with commands() as make:
        yield lambda *arguments, **options: make(*arguments, command="run", **{"stdin": subprocess.PIPE, **options})


def seen(*words, program=(*PYTHON, SEE)):
    """The words and the variables that a program sees; relay is quiet."""
    before, _, after = " ".join(words).partition(" -- ")
    done = run("run", *before.split(), "--", *program, *after.split())
    assert (done.returncode, done.stderr) == (0, ""), done
    return ast.literal_eval(done.stdout)


def test_the_program_finds_a_port_and_a_socket(target):
    words, variables = seen(
        f"my-db={target}", "--", "{my-db.host}:{my-db.port} -S{my-db.path} {my-db.dir} {my-db.port}"
    )
    host, port, path = (variables[f"RELAY_MY_DB_{field}"] for field in ("HOST", "PORT", "PATH"))
    assert host == "127.0.0.1"
    assert words == [f"{host}:{port}", f"-S{path}", os.path.dirname(path), port]
    assert len(variables) == 3


@pytest.mark.parametrize(
    ("words", "has_port"),
    [("", True), ("{db.path}", False), ("{db.dir}", False), ("{db.path} {db.port}", True), ("{db.host}", True)],
)
def test_a_port_is_opened_unless_the_program_has_the_socket_alone(target, words, has_port):
    _, variables = seen(f"db={target}", "--", words)
    assert ("RELAY_DB_PORT" in variables) == has_port == ("RELAY_DB_HOST" in variables)
    assert "RELAY_DB_PATH" in variables


def test_no_port_is_for_programs_that_read_the_variable(target):
    _, variables = seen(f"db={target}", "--no-port")
    assert [*variables] == ["RELAY_DB_PATH"]


def test_other_braces_are_left_alone(target):
    words = ["{}", "{print", "$1}", "{a.b}", "${HOME}", "{db}", "{DB.x}"]
    assert seen(f"db={target}", "--", *words)[0] == words


def test_only_its_user_can_use_the_socket(target):
    shown = run("run", f"db={target}", "--", "stat", "-c", "%a", "{db.dir}/..", "{db.dir}", "{db.path}")
    assert shown.stdout.split() == ["700", "700", "600"]


@pytest.mark.parametrize("way", ["port", "path"])
def test_it_relays_and_what_was_sent_before_the_end_arrives(serve, way):
    received = []
    server = serve(lambda end: received.append(receive_all(end)))
    family = "socket.AF_UNIX" if way == "path" else "socket.AF_INET"
    place = "sys.argv[1]" if way == "path" else "('127.0.0.1', int(sys.argv[1]))"
    code = f"import socket, sys; s = socket.socket({family}); s.connect({place}); s.sendall(bytes(1 << 22))"
    done = run("run", f"x=127.0.0.1:{server.address[1]}", "--", *PYTHON, code, f"{{x.{way}}}")
    assert (done.returncode, done.stderr) == (0, "")
    server.close()
    assert b"" in received and bytes(1 << 22) in received, "the probe and the program"


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143)]
)
def test_the_status_is_that_of_the_program(target, script, status):
    done = run("run", f"db={target}", "--", "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


def test_a_program_that_cannot_be_run(target, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"\x7fnonsense")
    for name, status, said in (
        ("no-such-program", 127, "relay: no-such-program: no such program\n"),
        (str(file), 126, f"relay: {file}: cannot be executed; chmod +x it\n"),
    ):
        done = run("run", f"db={target}", "--", name)
        assert (done.returncode, done.stderr) == (status, said)
    file.chmod(0o700)
    done = run("run", f"db={target}", "--", str(file))
    assert (done.returncode, done.stderr) == (126, f"{file}: Exec format error\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("db=db:1", "PROGRAM: missing; write it after --"),
        ("-- true", "NAME=TARGET: missing; write for example db=HOST:5432, or --file FILE"),
        ("db -- true", "db: target missing; write db=HOST:PORT, or --file FILE for those of a file"),
        ("D=db:1 -- true", "'D': cannot be the name of a tunnel; allowed are a-z, then a-z, 0-9, _ and - (32 at most)"),
        ("db=db -- true", "target 'db': no port; write it after a colon"),
        ("a=a:1 a=b:1 -- true", "a: a has the variables RELAY_A_… already; use another name"),
        ("a-b=a:1 a_b=b:1 -- true", "a_b: a-b has the variables RELAY_A_B_… already; use another name"),
        ("a=a:1 b=b:1 -- true {c.port}", "{c.port}: there is no such value; allowed are host, port, path, dir of a, b"),
        ("a=a:1 -- true {a.ports}", "{a.ports}: there is no such value; allowed are host, port, path, dir of a"),
        ("a=a:1 --no-port -- true {a.port}", "{a.port}: there is no such value; leave --no-port out"),
        ("a=a:1 --via socks5://u:secret@h:1 -- true", "use password_file=FILE or password_env=NAME"),
        ("--file no-such-file -- true", "no-such-file: No such file or directory; check the path"),
    ],
)
def test_mistakes_are_named_before_anything_is_opened(words, said):
    done = run("run", *words.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("relay: ") and said in done.stderr and done.stderr.count("\n") == 1


def test_a_target_that_refuses_is_one_line_and_no_program(start, tmp_path):
    with socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{refusing.getsockname()[1]}"
        done = run("run", f"db={place}", "--", "touch", str(tmp_path / "file"))
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"relay: db: {place}: connection refused; check that the service is running\n"
        assert not (tmp_path / "file").exists()
        assert run("run", f"db={place}", "--no-wait", "--", "echo", "begun").stdout == "begun\n"


def test_without_a_wait_a_route_that_no_retry_can_help_is_reported_and_its_tunnel_stays(start, sshd):
    code = (
        "import socket, sys; print('begun', flush=True); sys.stdin.readline(); "
        "s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); print(s.recv(1), flush=True)"
    )
    hop = server_url(sshd.server, hostkey="SHA256:" + "A" * 43)
    command = start("db=db:5432", "--via", hop, "--no-wait", "--", *PYTHON, f"# {{db.path}}\n{code}", "{db.port}")
    assert command.process.stdout.readline() == "begun\n"
    command.hear("it offers the host key")
    command.process.stdin.write("\n")
    command.process.stdin.flush()
    status, said = command.wait()
    assert status == 1 and "ConnectionResetError" in said, "the port is open, and the client is reset"
    assert said.count("relay: db: ") == 1, "two listeners have the same failure"


def test_a_route_has_connect_timeout_to_work():
    with black_hole() as listening:
        host, port = listening.getsockname()
        done = run("run", f"db={host}:{port}", "--connect-timeout", "0.1", "--", "true")
    assert done.returncode == 1
    assert done.stderr.startswith(f"relay: db: {host}:{port}: no answer in time") and done.stderr.count("\n") == 1


def test_tunnels_of_a_file_listen_where_it_says(tmp_path, target):
    file = tmp_path / "folder" / "relay.toml"
    file.parent.mkdir()
    tables = [
        tunnel("DB-1", target),
        tunnel("other", target, listen=f"unix://{tmp_path}/socket"),
        tunnel("bad", "127.0.0.1:1"),
    ]
    file.write_text("\n".join(tables))
    file.chmod(0o600)
    words, variables = seen(f"--file {file} DB-1 other", "--", "{DB-1.port} {other.path}")
    assert words == [variables["RELAY_DB_1_PORT"], str(tmp_path / "socket")]
    assert not (tmp_path / "socket").exists()
    assert variables.keys() == {"RELAY_DB_1_HOST", "RELAY_DB_1_PORT", "RELAY_OTHER_PATH"}
    folder = run("run", "--file", str(file), "other", f"db={target}", "--", "sh", "-c", "pwd; echo {db.port}").stdout
    assert folder.split()[0] == os.getcwd(), "the program runs where the user is"
    for words, status, said in (
        ("none -- true", 2, f"{file}: there is no tunnel none; it has DB-1, other, bad"),
        ("-- true", 1, "bad: 127.0.0.1:1: connection refused"),
        ("other -- true {other.port}", 2, "{other.port}: the tunnel has no such value: it listens at unix://"),
    ):
        done = run("run", "--file", str(file), *words.split())
        assert (done.returncode, done.stderr.count("\n")) == (status, 1)
        assert said in done.stderr


def test_a_service_on_a_server_may_be_the_program_itself(tmp_path, sshd):
    file = tmp_path / "relay.toml"
    with socket.create_server(("127.0.0.1", 0)):
        file.write_text(tunnel("web", "127.0.0.1:1", listen=server_url(sshd.server, listen=":0")))
        file.chmod(0o600)
        done = run("run", "--file", str(file), "--", "echo", "begun")
    assert (done.returncode, done.stdout, done.stderr) == (0, "begun\n", "")


def test_verbose_says_what_relay_does(target):
    done = run("run", "-v", f"db={target}", "--", "true")
    assert "db: listening on 127.0.0.1:" in done.stderr and "the program has ended: closing" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1])
def test_a_signal_is_passed_on(start, target, number):
    # No trap of bash: one that comes before bash waits in its next system call is not served until that returns.
    script = (
        f"import signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [{int(number)}]); print('ready', flush=True); "
        f"signal.sigwait([{int(number)}]); print('heard', flush=True); sys.exit(3)"
    )
    command = start(f"db={target}", "--", sys.executable, "-S", "-E", "-c", script)
    assert command.process.stdout.readline() == "ready\n"
    command.process.send_signal(number)
    assert command.process.stdout.readline() == "heard\n"
    assert command.wait() == (3, "")


def test_a_signal_before_the_program_ends_relay(start):
    with black_hole() as listening:
        host, port = listening.getsockname()
        command = start(f"db={host}:{port}", "-v", "--", "true")
        command.hear("listening on")
        status, _ = command.end(signal.SIGTERM)
    assert status == 128 + signal.SIGTERM


def test_a_signal_that_was_ignored_stays_ignored(start):
    with black_hole() as listening:
        host, port = listening.getsockname()
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        try:
            command = start(f"db={host}:{port}", "-v", "--", "true")
        finally:
            signal.signal(signal.SIGHUP, before)
        command.hear("listening on")
        command.process.send_signal(signal.SIGHUP)
        assert command.end(signal.SIGTERM)[0] == 128 + signal.SIGTERM


def test_it_has_the_files_that_relay_has_inherited(target):
    script = (
        f"relay_program() {{ '{sys.executable}' -m relay run db={target} -- cat \"$1\"; }}; relay_program <(echo word)"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=WAIT, check=False)
    assert (done.stdout, done.stderr) == ("word\n", "")
