"""The command ``relay``, as its users run it: real processes, signals and exit statuses."""

import contextlib
import json
import os
import pwd
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys

import pytest
from command_rig import LISTENING, RELAY, Terminal, run, squeezed
from helpers import WAIT, black_hole, echo, ending, makes, receive_all, send_and_end, wait_until

import relay
from relay.addresses.i2p import I2PListen, I2PRouter
from relay.addresses.options import options_of
from relay.addresses.ssh import SSHServer
from relay.cli import app as commands_module
from relay.cli.commands import COMMANDS, command
from relay.cli.commands.help import TOPICS
from relay.cli.options import seconds, seconds_or_zero


@pytest.fixture
def connect():
    yield from makes(lambda address: socket.create_connection(address, timeout=WAIT))


def test_it_says_where_it_listens_and_relays(start, connect, target):
    command = start(":0", target)
    address = command.address()
    assert address[0] == "127.0.0.1"
    client = connect(address)
    send_and_end(client, b"hello")
    assert receive_all(client) == b"hello"
    status, said = command.end()
    assert status == 0
    assert "1 connection, 5 B received, 5 B sent, 0 failed" in said


def test_it_relays_between_unix_sockets_and_removes_its_own(start, serve, tmp_path):
    server = serve(echo, str(tmp_path / "server"))
    command = start(f"unix://{tmp_path}/front", f"unix://{server.address}", "-v")
    assert command.process.stdout.readline() == f"listening on unix://{tmp_path}/front → unix://{server.address}\n"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(WAIT)
        client.connect(str(tmp_path / "front"))
        send_and_end(client, b"hello")
        assert receive_all(client) == b"hello"
    user = pwd.getpwuid(os.geteuid()).pw_name
    assert f"unix:{user} → unix://{server.address}: done" in command.hear("done")
    assert command.end()[0] == 0
    assert not (tmp_path / "front").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_either_signal_ends_it_with_status_0(start, number):
    command = start(":0", "127.0.0.1:1")
    command.address()
    status, said = command.end(number)
    assert status == 0
    assert said.splitlines()[0].endswith(f"INFO {number.name}: closing")
    assert "0 connections" in said.splitlines()[1]


def test_verbose_has_one_line_for_each_connection(start, connect, target):
    command = start(":0", target, "-v")
    address = command.address()
    for _ in range(2):
        client = connect(address)
        name = client.getsockname()
        send_and_end(client, b"hello")
        assert receive_all(client) == b"hello"
        line = command.hear("done")
        assert f"127.0.0.1:{name[1]} → {target}: done after " in line
        assert "5 B received, 5 B sent, copy" in line
    assert command.end()[0] == 0


def test_without_verbose_a_good_connection_is_not_worth_a_line(start, connect, target):
    command = start(":0", target)
    client = connect(command.address())
    send_and_end(client, b"hello")
    assert receive_all(client) == b"hello"
    assert len(command.end()[1].splitlines()) == 2


def test_json_log_lines_parse(start, connect, target):
    command = start(":0", target, "-v", "--log-format", "json")
    client = connect(command.address())
    send_and_end(client, b"hello")
    assert receive_all(client) == b"hello"
    command.hear('"reason": "done"')
    status, said = command.end()
    assert status == 0
    lines = [json.loads(line) for line in said.splitlines()]
    assert {"time", "level", "logger", "message"} <= set.intersection(*map(set, lines))
    (record,) = [line["connection"] for line in lines if "connection" in line]
    assert (record["target"], record["reason"], record["received"], record["sent"]) == (target, "done", 5, 5)
    (stats,) = [line["stats"] for line in lines if "stats" in line]
    assert (stats["accepted"], stats["active"], stats["failed"]) == (1, 0, {})


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("forward", ":0", "h:99999", "--log-format", "json"), 2, "port 99999"),
        (("forward", ":0", "--log-format=json"), 2, "TARGET: missing; see relay"),
        (("forward", "--log-format", "json", ":0", "h:1", "--nconect", "1"), 2, "--nconect"),
        (("forward", "192.0.2.1:0", "h:1", "--log-format", "json", "--debug"), 1, "no such address"),
        (("up", "no-such-file", "--log-format", "json"), 2, "no-such-file"),
    ],
)
def test_json_errors_parse(arguments, status, told):
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (status, "")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert lines[-1]["level"] == "error"
    assert told in lines[-1]["message"]
    assert ("traceback" in lines[-1]) == ("--debug" in arguments)


def test_what_is_checked_has_its_own_format():
    assert run("check", "--", "forward", ":0", "h:99999", "--log-format", "json").stderr.startswith("relay: ")


def reason_with(start, connect, target, *options):
    command = start(":0", target, "-v", "--log-format", "json", *options)
    client = connect(command.address())
    send_and_end(client, b"x") if "--linger" in options else client.sendall(b"x")
    line = json.loads(command.hear('"connection"'))
    assert ending(client) == "reset"
    status, said = command.end()
    assert status == 0
    assert json.loads(said.splitlines()[-1])["stats"]["failed"] == {line["connection"]["reason"]: 1}
    return line["connection"]["reason"]


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--timeout", "lifetime"),
        ("--idle-timeout", "idle"),
        ("--linger", "linger"),
        ("--first-byte-timeout", "unreachable"),
    ],
)
def test_the_limits_are_those_of_the_tunnel(start, connect, listener, option, reason):
    silent = "{}:{}".format(*listener.getsockname())
    assert reason_with(start, connect, silent, option, "0.05") == reason


def test_the_time_to_connect_is_limited(start, connect):
    with black_hole() as hole:
        silent = "{}:{}".format(*hole.getsockname())
        assert reason_with(start, connect, silent, "--connect-timeout", "0.05") == "connect_timeout"


def test_it_takes_the_descriptors_that_the_system_allows_but_a_reserve(start):
    soft = ["sh", "-c", 'ulimit -Sn 64; exec "$0" "$@"']
    command = start(":0", "127.0.0.1:1", prefix=soft)
    command.address()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert resource.prlimit(command.process.pid, resource.RLIMIT_NOFILE) == (hard - min(32, hard // 8), hard)
    assert command.end()[0] == 0


def test_what_the_machine_refuses_gets_one_line_and_status_1(listener, tmp_path):
    port = listener.getsockname()[1]
    (tmp_path / "file").touch()
    refused = {
        f":{port}": f"127.0.0.1:{port}: Address already in use",
        "no-such-host.invalid:0": "no-such-host.invalid:0: cannot resolve the host name",
        "192.0.2.1:0": "this machine has no such address",
        f"unix://{tmp_path}/none/s": "No such file or directory",
        f"unix://{tmp_path}/file": "a file that is not a socket",
    }
    for listen, said in refused.items():
        done = run("forward", listen, "h:1")
        assert (done.returncode, done.stdout) == (1, ""), listen
        assert done.stderr.startswith("relay: ")
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("via", ["ssh://me:hunter2@h", "ssh://h?password=hunter2", "sshh://h?password=hunter2"])
def test_debug_shows_no_secret(via):
    done = run("forward", ":0", "h:1", "--via", via, "--debug")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback (most recent call last)" in done.stderr
    assert "hunter2" not in done.stderr


def test_debug_adds_the_traceback():
    done = run("forward", ":0", "h:99999", "--debug")
    assert done.returncode == 2
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("relay: target 'h:99999'")


@pytest.mark.parametrize("program", [(RELAY, "--version"), (RELAY, "-V"), (sys.executable, "-m", "relay", "-V")])
def test_version(program):
    done = subprocess.run(program, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"relay {relay.__version__}\n"
    assert re.fullmatch(r"\d+\.\d+\.\d+", relay.__version__)


@pytest.fixture
def here(monkeypatch, capsys):
    """Runs a command in this process: the exit status, standard output and standard error."""

    def make(*arguments):
        monkeypatch.setattr(sys, "argv", ["relay", *arguments])
        monkeypatch.setenv("COLUMNS", "80")
        status = commands_module.run()
        return status, *capsys.readouterr()

    return make


PLACEHOLDERS = re.compile(r"\{(port|NAME\.\w+|db\.\w+)\}")
EVERY = [(name,) for name in COMMANDS if name != "keys"] + [("keys",), ("keys", "new"), ("keys", "show")]


@pytest.mark.parametrize("words", [(), *EVERY], ids=" ".join)
def test_every_help_is_clean_at_80_columns(here, words):
    status, shown, errors = here(*words, "--help")
    assert (status, errors) == (0, "")
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    assert not [
        line
        for line in lines
        if line.endswith(" .") or "<bool>" in line or "<str>" in line or "{" in PLACEHOLDERS.sub("", line)
    ]
    assert here("help", *words) == (0, shown, "")


def test_help_loses_no_brackets(here):
    assert "is saved [the text of TARGET]." in " ".join(here("expose", "--help")[1].split())
    for name in ("forward", "expose", "socks", "up", "check", "pipe"):
        shown = squeezed(here(name, "--help")[1])
        for parameter in command(name).params:
            for bracketed in re.findall(r"\[[^]]*\]", getattr(parameter, "help", None) or ""):
                assert squeezed(bracketed) in shown, (name, bracketed)


@pytest.mark.parametrize("words", [(), ("keys",)], ids=["relay", "keys"])
def test_without_a_command_it_shows_the_help_and_has_status_2(here, words):
    assert here(*words) == (2, here(*words, "--help")[1], "")


def test_topics(here):
    for topic, text in TOPICS.items():
        assert here("help", topic) == (0, text, "")
        assert max(map(len, text.splitlines())) <= 80
    assert all(f"\n  {status}  " in TOPICS["exit-status"] for status in range(3))


def test_a_bare_port_is_a_target_on_the_loopback(start, connect, echo_server):
    command = start(":0", str(echo_server.address[1]), "--idle-timeout", "5m")
    line = command.process.stdout.readline()
    assert line.endswith(f" → 127.0.0.1:{echo_server.address[1]}\n")
    client = connect(("127.0.0.1", int(LISTENING.fullmatch(line)[2])))
    send_and_end(client, b"hello")
    assert receive_all(client) == b"hello"
    assert command.end()[0] == 0


def test_who_swaps_listen_and_target_is_shown_the_order(here):
    status, _, errors = here("forward", "no-such-host.invalid:80", "8090")
    assert status == 1
    assert errors.endswith("LISTEN comes first: relay forward 8090 no-such-host.invalid:80\n")


@pytest.mark.parametrize(
    ("text", "value"), [("90", 90), ("1.5s", 1.5), ("250 ms", 0.25), ("10m", 600), ("2h", 7200), ("1d", 86400)]
)
def test_times_may_have_a_unit(text, value):
    assert seconds(text) == seconds_or_zero(text) == value


@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_full_disk_is_one_line(buffered):
    with open("/dev/full", "w") as full:
        done = run("--version", stdout=full, env={**os.environ, "PYTHONUNBUFFERED": buffered})
    assert (done.returncode, done.stderr) == (1, "relay: standard output: No space left on device\n")


@pytest.mark.parametrize(("name", "least"), [("forward", 5), ("expose", 4), ("socks", 6)])
def test_help_has_examples_and_they_are_right(here, name, least):
    shown = squeezed(here(name, "--help")[1])
    examples = re.findall(rf"^relay ({name} .*?)(?: \(.*)?$", command(name).epilog, re.MULTILINE)
    assert len(examples) >= least and any("--via" in example for example in examples)
    for example in examples:
        assert squeezed(f"relay {example}") in shown
        status, _, errors = here("check", "--print", "--", *shlex.split(example))
        assert (status, errors) == (0, ""), example


def test_help_names_every_parameter_of_a_hop_but_the_secrets():
    shown = TOPICS["hops"]
    for name in (*options_of(SSHServer), *options_of(I2PRouter), *options_of(I2PListen)):
        assert (f"\n  {name}=" in shown) == (name not in ("password", "passphrase")), name


def test_errors_list_the_parameters_of_a_server_in_the_order_of_the_help():
    of_a_server = TOPICS["hops"].partition("\nSSH.")[2].partition("\nProxies")[0]
    shown = re.findall(r"^  (\w+)=", of_a_server, re.MULTILINE)
    assert shown == [*(name for name in options_of(SSHServer) if name not in ("password", "passphrase")), "listen"]


def test_help_without_a_terminal_has_no_escapes():
    assert "\x1b" not in run("--help").stdout


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("relay fo", "forward"),
        ("relay ex", "expose"),
        ("relay expose --o", "--on"),
        ("relay forward --idl", "--idle-timeout"),
    ],
)
def test_the_shell_completes(words, found):
    asked = {"_RELAY_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    assert f"plain,{found}" in run(env={**os.environ, **asked}).stdout.split()


def reach(path):
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(WAIT)
        client.connect(str(path))
        send_and_end(client, b"hello")
        return receive_all(client) == b"hello"


@pytest.mark.parametrize("how", ["a pipe that nobody reads", "closed"])
def test_it_works_without_standard_output(start, target, tmp_path, how):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as nobody:
        prefix = ("sh", "-c", 'exec "$0" "$@" >&-') if how == "closed" else ()
        command = start(f"unix://{tmp_path}/front", target, prefix=prefix, stdout=nobody)
    wait_until(lambda: reach(tmp_path / "front"))
    status, said = command.end()
    assert status == 0
    # It may listen already when the signal comes, and not know it yet: nothing but the end is said then.
    assert "INFO SIGTERM: closing" in said and all(" INFO " in line for line in said.splitlines())


def test_it_works_without_standard_error(start, connect, target):
    command = start(":0", target, "-v", prefix=("sh", "-c", 'exec "$0" "$@" 2>&-'))
    client = connect(command.address())
    send_and_end(client, b"hello")
    assert receive_all(client) == b"hello"
    assert command.end() == (0, "")


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_output_that_nobody_reads_is_no_traceback(option):
    reader, writer = os.pipe()
    os.close(reader)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with os.fdopen(writer, "w") as nobody:
        done = run(option, stdout=nobody, env=buffered)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.fixture
def terminal():
    with contextlib.ExitStack() as stack:
        yield Terminal(stack)


def test_watch_obeys_no_color(start, terminal):
    options = {"stderr": terminal.its, "env": {**os.environ, "TERM": "xterm-256color", "NO_COLOR": "1"}}
    command = start(":0", "127.0.0.1:1", "--watch", **options)
    command.address()
    terminal.wait_for("0 open of")
    command.process.send_signal(signal.SIGTERM)
    assert command.wait()[0] == 0
    terminal.wait_for("INFO 0 connections, ")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", terminal.seen)


def test_watch_without_a_terminal_writes_no_escapes(start):
    command = start(":0", "127.0.0.1:1", "--watch")
    command.address()
    status, said = command.end()
    assert status == 0
    assert "\x1b" not in said
    assert "--watch: there is no live table on standard error: it is no terminal\n" in said


def test_a_reader_of_standard_error_that_stops_does_not_stop_the_relay(start, target):
    reader, writer = os.pipe()
    try:
        command = start(":0", target, "-v", stderr=writer)
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while os.write(writer, b"x" * 65536):
                pass
        os.set_blocking(writer, True)
        address = command.address()
        for _ in range(200):
            with socket.create_connection(address, timeout=WAIT) as client:
                client.sendall(b"x")
                assert client.recv(1) == b"x"
        command.process.send_signal(signal.SIGTERM)
        assert command.process.wait(WAIT) == 0
    finally:
        os.close(reader)
        os.close(writer)


def test_with_standard_error_closed_nothing_else_is_written_to():
    done = run("forward", ":0", "nope", stderr=None, preexec_fn=lambda: os.close(2))
    assert (done.returncode, done.stdout) == (2, "")


def test_a_standard_output_without_arrows_gets_a_question_mark(start, target):
    command = start(":0", target, env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    assert command.process.stdout.readline().endswith(f" ? {target}\n")
    assert command.end()[0] == 0


def test_dozens_of_options_are_in_groups():
    shown = run("forward", "--help").stdout
    heads = re.findall(r"^(\S.*):$", shown, re.MULTILINE)
    assert heads[1:6] == ["Route", "Clients", "Streams to the target", "Time", "Other options"]
    assert re.search(r"^Route:\n  --via HOP", shown, re.MULTILINE)
    assert len(re.findall(r"^  --", shown, re.MULTILINE)) > 30
    assert not re.search(r"^  --(allow|timeout|warm|via)\b", shown.split("Other options:\n")[1], re.MULTILINE)
