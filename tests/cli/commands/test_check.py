"""``relay check``: what a file or a command line would do, without doing it."""

import json
import os
import re
import shlex
import socket
import tomllib

import pytest
from command_rig import run, squeezed, tunnel

from relay import config
from relay.cli import app
from relay.cli import run as serving
from relay.cli.commands import check, socks
from relay.daemon.options import Options
from relay.daemon.plan_from_file import plan_of
from relay.eventloop import reserve


@pytest.fixture
def checked(tmp_path):
    """The exit status, the lines of standard output and those of standard error."""

    def make(text, *options, mode=0o600, **more):
        path = tmp_path / "relay.toml"
        path.write_text(text)
        path.chmod(mode)
        done = run("check", *options, str(path), **more)
        prefix = f"relay: {path}:"
        return (
            done.returncode,
            done.stdout.splitlines(),
            [line.removeprefix(prefix) for line in done.stderr.splitlines()],
        )

    return make


def at(name, listen, *more):
    """The table of a tunnel: its first lines are its name, where it listens, and where it leads to."""
    return tunnel(name, "127.0.0.1:1", *more, listen=listen)


def effective(*line):
    done = run("check", "--print", "--", *line)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


# -- a file -----------------------------------------------------------------------------------------------------------


def test_rules_that_can_never_match_are_noticed(checked, tmp_path):
    (tmp_path / "list").write_text("# all\n10.0.0.0/8\nlogin:ann\n")
    status, lines, notices = checked("""
        [tunnels.t]
        listen = "0.0.0.0:0"
        target = "127.0.0.1:1"
        allow = ["10.1.0.0/16",
                 "file:list", "user:ann"]
        deny = ["10.1.2.0/24", "10.1.2.0/24"]
        [tunnels.proxy]
        listen = "socks5://127.0.0.1:0"
        user = "ann"
        password = "secret"
        allow = ["login:ann"]
    """)
    assert status == 1
    assert len(lines) == 2
    path, never = tmp_path / "list", "can never match"
    no = "rules match no client of this listener"
    assert notices == [  # the file may be for several tunnels, so its rule is no mistake
        f"6: tunnels.t.allow[1]: {path}, line 3: login:ann {never}: login: {no}; it needs a proxy with a login",
        f"5: tunnels.t.allow[0]: cidr:10.1.0.0/16 {never}: cidr:10.0.0.0/8, {path}, line 2, is wider; leave it out",
        f"6: tunnels.t.allow[2]: user:ann {never}: user: {no}; it needs a listener at a Unix socket",
        "7: tunnels.t.deny[1]: cidr:10.1.2.0/24 can never match: it is there already, deny[0]; leave it out",
    ]


def test_rules_of_a_file_that_can_never_match_are_noticed_with_status_0(checked, tmp_path):
    (tmp_path / "list").write_text("10.0.0.0/8\n10.0.0.0/8\nuser:ann\n")
    status, _, notices = checked('[tunnels.t]\nlisten = "0.0.0.0:0"\ntarget = "127.0.0.1:1"\nallow = ["file:list"]')
    assert (status, len(notices)) == (0, 2)


def test_what_no_client_of_the_listener_can_have_is_noticed(checked):
    login = '[{name = "login", rate = "3/10m", ban = "1d"}]'
    status, _, notices = checked(
        "\n"
        + at("t", "0.0.0.0:0", 'allow = ["fd00::/8"]', f"limit = {login}")
        + '[tunnels.proxy]\nlisten = "socks5://[::]:0"\nuser = "bob"\npassword = "secret"\n'
        + f'allow = ["login:alice", "10.0.0.0/8"]\nlimit = {login}\n'
        + at("six", "[::1]:0", 'deny = ["10.0.0.0/8"]')
        + at("balanced", "127.0.0.1:0", 'deny = ["fd00::/8"]', 'accept_proxy = ["127.0.0.1", "10.0.0.0/8"]')
    )
    assert status == 1
    loopback = "all clients of this listener have addresses of the loopback"
    assert [notice.rpartition(";")[0] for notice in notices] == [
        "5: tunnels.t.allow[0]: cidr:fd00::/8 can never match: all clients of this listener have addresses of IPv4",
        "6: tunnels.t.limit[0]: login: counts wrong passwords, but the clients of this listener do not log in",
        "11: tunnels.proxy.allow[0]: login:alice can never match: the only user who can log in is bob",
        "16: tunnels.six.deny[0]: cidr:10.0.0.0/8 can never match: all clients of this listener have addresses of IPv6",
        f"21: tunnels.balanced.accept_proxy[1]: 10.0.0.0/8 can never match: {loopback}",
    ]


def test_the_rules_of_the_defaults_are_for_several_kinds_of_listeners(checked, tmp_path):
    status, _, notices = checked(
        '\n[defaults]\nallow = ["10.0.0.0/8", "user:root", "10.1.0.0/16"]\ndeny = ["user:nobody"]\n'
        + at("a", "0.0.0.0:0")
        + at("b", f"unix://{tmp_path}/b")
        + at("c", "i2p:")
        + at("d", "0.0.0.0:0", 'allow = ["user:ann"]')
    )
    assert status == 1
    no = "user: rules match no client of this listener; it needs a listener at a Unix socket"
    none = "no rule of defaults.allow is for clients of this listener; give it its own allow"
    assert notices == [
        "3: defaults.allow[2]: cidr:10.1.0.0/16 can never match: cidr:10.0.0.0/8, allow[0], is wider; leave it out",
        f"11: tunnels.c: no client could connect: {none}",
        f"17: tunnels.d.allow[0]: user:ann can never match: {no}",
    ]


@pytest.mark.parametrize(
    ("rights", "allow", "mode"),
    [
        ("", '["user:nobody"]', "0600"),
        ("?mode=0640&group=nogroup", '["user:root", "user:nobody"]', "0640"),
        ("?mode=0660&group=nogroup", '["user:nobody"]', ""),
        ("?mode=0602", '["user:nobody"]', ""),
        ("", '["user:root", "user:0"]', ""),
        ("", f'["user:{os.geteuid()}"]', ""),
    ],
)
def test_a_user_whom_the_mode_of_a_socket_does_not_let_in_is_noticed(checked, tmp_path, rights, allow, mode):
    _, _, notices = checked("\n" + at("a", f"unix://{tmp_path}/s{rights}", f"allow = {allow}"))
    text = (
        f"only the owner of the socket can connect (mode {mode}), perhaps not nobody; write ?mode=0660&group=NAME after"
    )
    assert notices == ([f"5: tunnels.a.allow: {text} its path"] if mode else [])


def test_an_empty_list_of_the_allowed_is_noticed(checked):
    status, _, notices = checked(
        "\n[defaults]\nallow = []\n"
        + at("a", "127.0.0.1:0")
        + at("b", "127.0.0.1:0", "allow = []", "deny = []")
        + at("c", "0.0.0.0:0", 'allow = ["10.0.0.0/8"]', "deny = []")
    )
    text = "no client could connect: the list is empty; name the clients that may, or leave it out for all"
    assert (status, notices) == (1, [f"3: defaults.allow: {text}", f"10: tunnels.b.allow: {text}"])


def test_a_user_that_the_machine_does_not_have_is_noticed(checked, tmp_path):
    status, _, notices = checked(
        '\n[defaults]\ndeny = ["user:nobody", "user:no-such-user"]\n'
        + at("local", f"unix://{tmp_path}/a?mode=0666", 'allow = ["user:root", "user:4242", "user:noroot"]')
        + at("balanced", f"unix://{tmp_path}/b", 'allow = ["user:noroot"]', 'accept_proxy = ["unix"]')
    )
    never = "can never match: this machine has no such user; correct it, or leave it out"
    assert (status, notices) == (
        1,
        [f"3: defaults.deny[1]: user:no-such-user {never}", f"7: tunnels.local.allow[2]: user:noroot {never}"],
    )


def test_a_file_of_rules_that_cannot_be_read_is_a_problem_of_its_entry(checked, tmp_path):
    (tmp_path / "wrong").write_text("# ours\n10.0.0.1/8\n")
    status, _, problems = checked(
        '\n[defaults]\ndeny = ["missing"]\n'
        + at("a", "127.0.0.1:0", 'allow = [\n    "10.0.0.0/8",\n    "",\n]', "deny = []")
        + at("b", "127.0.0.1:0")
        + at("c", "127.0.0.1:0", 'deny = ["."]')
        + at("d", "127.0.0.1:0", 'allow = ["wrong"]', "deny = []")
    )
    assert status == 2
    assert [problem.partition("; ")[0] for problem in problems] == [
        "3: defaults.deny[0]: 'missing' is neither a rule nor a file: the kind is missing",
        "9: tunnels.a.allow[1]: '' is neither a rule nor a file: that is no rule",
        f"18: tunnels.c.deny[0]: {tmp_path}: not a regular file",
        f"22: tunnels.d.allow[0]: {tmp_path}/wrong, line 2: cidr:10.0.0.1/8: it has host bits set",
    ]


def test_it_says_what_would_listen_where(checked, ssh_server, tmp_path, certificates):
    key = tmp_path / "site.dat"
    address = run("keys", "new", str(key)).stdout.splitlines()[0]
    status, lines, problems = checked(f"""
        [hops]
        bastion = "{ssh_server.url}"
        [tunnels.db]
        listen = 5432
        target = "no-such-host.invalid:5432"
        via = ["bastion"]
        [tunnels.tls]
        listen = "tls://localhost:0?cert={certificates.cert}&key={certificates.key}"
        target = "tls://localhost:1?ca={certificates.ca}"
        [tunnels.page]
        listen = "{ssh_server.url}&listen=:8080"
        target = "unix:///run/app.sock"
        [tunnels.site]
        listen = "i2p:"
        target = "127.0.0.1:8000"
        keys = "site.dat"
        [tunnels.proxy]
        listen = "http://:3128"
        via = ["bastion"]
        """)
    server = ssh_server.url.partition("?")[0]
    assert problems == []
    assert lines == [
        f"db: listens on 127.0.0.1:5432 → no-such-host.invalid:5432 via {server}",
        f"tls: listens on localhost:0 → tls://localhost:1?ca={certificates.ca}",
        f"page: listens on 127.0.0.1:8080 on {server} → unix:///run/app.sock",
        f"site: listens on {address} → 127.0.0.1:8000",
        f"proxy: listens on 127.0.0.1:3128 → anywhere via {server}",
    ]
    assert status == 0
    assert ssh_server.connections == 0
    assert ssh_server.attempts == []


def test_all_that_cannot_be_had_is_told_at_once(checked, ssh_server, tmp_path):
    (tmp_path / "text").write_text("nonsense")
    (tmp_path / "text").chmod(0o600)
    host, port = ssh_server.address
    status, lines, problems = checked(
        f'[hops]\nnone = "ssh://{host}:{port}?password_file=missing&config=/dev/null"\n'
        'unset = "socks5://me@localhost:1?password_env=NOT_SET_AT_ALL"\n'
        + tunnel("name", "no-such-host.invalid:1", listen="no-such-name.invalid:0")
        + tunnel("ca", "tls://localhost:1?ca=missing.pem")
        + tunnel("a", "localhost:1", 'via = ["none"]')
        + tunnel("b", "localhost:1", 'via = ["none"]')
        + tunnel("c", "localhost:1", 'via = ["unset"]')
        + tunnel("d", "exec:no-such-program-at-all")
        + tunnel("e", "localhost:1", listen="i2p:?keys=text")
        + tunnel("good", "localhost:1")
    )
    assert lines == ["good: listens on 127.0.0.1:0 → localhost:1"]
    assert status == 2
    wanted = [
        (2, f"hops.none: ssh://{host}:{port}: password_file 'missing': No such file or directory"),  # once
        (3, "hops.unset: socks5://me@localhost:1: password_env: the environment variable 'NOT_SET_AT_ALL' is not set"),
        (4, "tunnels.name: no-such-host.invalid: cannot resolve the host name"),
        (4, "tunnels.name: no-such-name.invalid: cannot resolve the host name"),
        (7, "tunnels.ca: missing.pem: ca: No such file or directory"),
        (22, "tunnels.d: exec:no-such-program-at-all: program not found"),
        (25, "tunnels.e: text: not an I2P private key"),
    ]
    assert len(problems) == len(wanted), problems
    for problem, (line, text) in zip(problems, wanted, strict=True):
        assert problem.startswith(f"{line}: {text}")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nothing", "keyfile=nothing: no such file; check the path"),
        ("text", "text is not a private key that paramiko can read"),
        ("open", "open is accessible to other users (mode 0644); run chmod 600"),
    ],
)
def test_key_files_are_opened(checked, tmp_path, ssh_server, name, told):
    (tmp_path / "text").write_text("nonsense")
    (tmp_path / "text").chmod(0o600)
    (tmp_path / "open").write_text("nonsense")
    (tmp_path / "open").chmod(0o644)
    url = f"ssh://127.0.0.1?keyfile={name}&config=/dev/null"
    status, _, problems = checked(f'[tunnels.a]\nlisten = ":0"\ntarget = "x:1"\nvia = ["{url}"]\n')
    assert problems == [f"1: tunnels.a: ssh://127.0.0.1: {told}"]
    assert status in (1, 2)
    tunnels = "".join(f'[tunnels.{name}]\nlisten = ":0"\ntarget = "x:1"\nvia = ["bastion"]\n' for name in "ab")
    _, _, problems = checked(f'[hops]\nbastion = "{url}"\n{tunnels}')  # once, where the hop is written
    assert problems == [f"2: hops.bastion: ssh://127.0.0.1: {told}"]


def test_what_is_wrong_itself_is_status_2(checked):
    status, lines, problems = checked(
        '[tunnels.a]\nlisten = ":0"\ntarget = "x"\n[tunnels.b]\nlisten = ":0"\ntarget = "tls://a.b:1?ca=none"\n'
    )
    assert (status, lines) == (2, [])
    assert [problem.partition(":")[0] for problem in problems] == ["3", "4", "4"]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ('status = "127.0.0.1:0"\nlog_file = "access.log"', None),
        ('status = "none"\nlog_file = "none"', None),
        ('status = "http://127.0.0.1:0"', "1: status: status address 'http://127.0.0.1:0': expected PORT, IP:PORT or "),
        ('control = "none"', None),
        ('control = "new/relay.sock"', None),
        ('control = ""', "1: control: control socket: the path is empty; name a socket, or leave it out"),
        ('control = "."', "1: control: control socket .: it is a directory; name a socket in it"),
        ('control = "unix:///run/relay.sock"', "1: control: control socket unix:///run/relay.sock: that is an address"),
        ('control = "no-such/new/relay.sock"', "1: control: control socket no-such/new/relay.sock: no directory "),
        (f'control = "/run/{200 * "x"}"', f"1: control: control socket: path: /run/{200 * 'x'} has 205 bytes; a Unix"),
        ('status = "0.0.0.0:0"', "1: status: status address '0.0.0.0:0': other machines can reach it; use 127.0.0.1"),
        ('status = "nonsense:0"', "1: status: status address 'nonsense:0': expected PORT, IP:PORT or unix:///PATH"),
        (
            'status = "0.0.0.0:0"\nstatus_public = true\nstatus_token_file = "none.txt"',
            "1: status: status_token_file none.txt: No such file or directory; make one, owner-only",
        ),
        (
            'status = "unix:///run/s.sock?group=no-such-group"',
            "1: status: status address 'unix:///run/s.sock?group=no-such-group': group: this machine has no group",
        ),
        ('log_file = "no-such/access.log"', "1: log_file: log file no-such/access.log: no directory "),
        ('log_file = "/"', "1: log_file: log file /: it is a directory; name a file"),
        ('state = "relay.state"', None),
        ('state = ""', "1: state: state file: the path is empty; name a file, or leave the key out"),
        ('state = "."', "1: state: state file .: it is a directory; name a file"),
        ('state = "no-such/state"', "1: state: state file no-such/state: no directory "),
    ],
)
def test_the_keys_at_the_top_are_checked_as_relay_up_does(checked, tmp_path, keys, told):
    status, lines, problems = checked(f'{keys}\n[tunnels.a]\nlisten = ":0"\ntarget = "127.0.0.1:1"\n')
    assert lines == ["a: listens on 127.0.0.1:0 → 127.0.0.1:1"]
    assert (status, len(problems)) == ((0, 0) if told is None else (2, 1))
    assert all(problem.startswith(told) for problem in problems)
    assert os.listdir(tmp_path) == ["relay.toml"], "check makes no file"


# -- a command line ---------------------------------------------------------------------------------------------------

LINES = [
    "forward 5432 db:5432",
    "forward :0 db:5432 --via ssh://me@bastion --via ssh://me@inner?keyfile=k --nconnect 3 --linger 0 --drain 1.5",
    "forward :0 db:5432 --warm 3 --warm-for 10",
    "forward 'tls://0.0.0.0:443?cert=c.pem&key=k.pem' unix:///run/app.sock --timeout 5 --idle-timeout 6",
    "forward 8080 i2p://name.i2p --sam 127.0.0.1:7657 --connect-timeout 7",
    "forward 8080 name.i2p:80 --via ssh://me@bastion --via i2p: --sam 127.0.0.1:7657",
    "forward i2p: 127.0.0.1:80",
    "forward 'i2p:?keys=a.dat' 127.0.0.1:80 --sam 127.0.0.1:7657",
    "forward ssh://me@server?listen=:80 127.0.0.1:80 --via ssh://me@other",
    "forward 8080 exec:cat",
    "forward 8080 db1:1 --target db2:2 --target unix:///run/db --policy fastest --via ssh://me@bastion",
    "forward 8080 db:5432 --limit rate=5/m,ban=10m --limit per=tunnel,bandwidth=20MB/s,name=all",
    "expose 127.0.0.1:8000 --on ssh://me@server --via ssh://me@bastion",
    "expose 127.0.0.1:8000 --on i2p",
    "expose 127.0.0.1:8000 --on i2p --warm 1",
    "expose 127.0.0.1:8000 --on i2p --transient --sam 127.0.0.1:7657",
    "expose 127.0.0.1:8000 --on 'i2p:?in_depth=1' --session name --deny a.txt --deny b.txt",
    "expose unix:///run/app.sock --on i2p: --keys a.dat --allow b.txt",
    "socks 1080",
    "socks :0 --rule '*.corp=ssh://a,ssh://b' --rule '*=direct' --user me --password-file p",
    "socks http://127.0.0.1:3128 --via ssh://me@bastion --sam 127.0.0.1:7657",
    "socks unix:///tmp/x --user me --password-env P",
    "socks 1080 --limit rate=5/m",
]


@pytest.fixture
def plan_of_line(monkeypatch):
    """Return what a command itself would open."""
    found = []
    for module in (serving, socks):
        monkeypatch.setattr(module, "relay_one", lambda plan, signals, title: found.append(plan))
    monkeypatch.setattr(reserve, "keep", lambda: None)

    def make(name, *words):
        app.command(name).main(list(words), standalone_mode=False)
        return found.pop()

    return make


@pytest.mark.parametrize("line", LINES)
def test_a_command_line_becomes_a_file_that_does_the_same(line, tmp_path, plan_of_line):
    words = shlex.split(line)
    path = tmp_path / "relay.toml"
    path.write_text(effective(*words))
    path.chmod(0o600)
    found = config.read(str(path))
    assert found.problems.in_order() == []
    [entry] = found.entries
    plan, same = plan_of(entry, Options()), plan_of_line(*words)
    for name in ("name", "routes", "options", "on", "over", "at_i2p", "trial", "route_key", "elsewhere"):
        assert getattr(plan, name) == getattr(same, name), name


I2P_HOPS = "--via i2p: --via ssh://me@a.i2p?config=/dev/null"
# A command, and for each of its options the words that give it, with those that it cannot be without.
COMMANDS = {"forward": "forward :0 127.0.0.1:80", "expose": "expose 127.0.0.1:8000 --on i2p", "socks": "socks :0"}
GIVEN = {
    "--via": "--via socks5://127.0.0.1:1080",
    "--resume": "--via ssh://me@127.0.0.1 --resume",
    "--target": "--target 127.0.0.1:81 --target 127.0.0.1:82",
    "--policy": "--policy spread --target 127.0.0.1:81",
    "--mptcp": "--mptcp",
    "--sam": "--sam 127.0.0.1:7657 --sam 127.0.0.1:7658",
    "forward --sam": f"--sam 127.0.0.1:7657 {I2P_HOPS}",
    "--on": "",  # it cannot be left out
    "--keys": "--keys a.dat",
    "--session": "--session name",
    "--transient": "--transient",
    "--rule": "--rule *.corp=socks5://127.0.0.1:1080 --rule *=direct",
    "--user": "--user me --password-file secret",
    "--password-file": "--user me --password-file secret",
    "--password-env": "--user me --password-env A_PASSWORD",
    "--nconnect": "--nconnect 3",
    "--timeout": "--timeout 5m",
    "--connect-timeout": "--connect-timeout 7",
    "--idle-timeout": "--idle-timeout 30",
    "--linger": "--linger 0",
    "--first-byte-timeout": "--first-byte-timeout 20",
    "--drain": "--drain 1.5",
    "--drain-spread": "--drain-spread 1",
    "--shutdown-delay": "--shutdown-delay 2",
    "--allow": "--allow login:a --allow 10.0.0.0/8",
    "--deny": "--deny 10.0.0.1 --deny 10.0.0.2",
    "--fail-fast": "--fail-fast",
    "--control": "--control relay.sock",
    "--status": "--status 127.0.0.1:9464",
    "--verbose": "--verbose",
    "--watch": "--watch",
    "--log-format": "--log-format text",
    "--log-file": "--log-file access.log",
    "--log-interval": "--log-interval 1m",
    "--sandbox": "--sandbox auto",
    "--debug": "--debug",
    "--warm": "--warm 2",
    "--warm-for": "--warm-for 10 --warm 1",
    "--source": "--source 127.0.0.2",
    "expose --source": "--source peer",
    "--send-proxy": "--send-proxy v2",
    "--tag": "--tag shop",
    "--accept-proxy": "--accept-proxy 127.0.0.1,10.0.0.0/8",
    "--limit": "--limit rate=5/m,ban=10m --limit per=tunnel,bandwidth=20MB/s,action=close,name=all",
    "--workers": "--workers 2",
    "--carrier-sharing": "--carrier-sharing per-worker",
}
WITHOUT_KEY = {"--fail-fast", "--verbose", "--watch", "--log-format", "--debug"}  # options of relay up alone
AT_THE_TOP = ("control", "status", "log_file", "log_interval", "shutdown_delay", "sandbox", "workers")


@pytest.fixture
def checked_line(capsys):
    """Return the lines of standard output and of standard error of ``relay check``, in this process."""

    def make(*words):
        app.command("check").main(list(words), standalone_mode=False)
        done = capsys.readouterr()
        return done.out, done.err.splitlines()

    return make


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (name, max(one.opts, key=len))
        for name in COMMANDS
        for one in app.command(name).params
        if one.opts[0][0] == "-" and not one.hidden
    ],
)
def test_each_option_of_a_command_is_one_of_the_file(
    command, option, tmp_path, plan_of_line, checked_line, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("A_PASSWORD", "secret")
    (tmp_path / "secret").write_text("secret\n")
    (tmp_path / "secret").chmod(0o600)
    line = f"{COMMANDS[command]} {GIVEN.get(f'{command} {option}', GIVEN[option])}"
    same = plan_of_line(*line.split())
    given = line.split()[len(COMMANDS[command].split()) :]
    assert not given or same != plan_of_line(*COMMANDS[command].split()), "the option is heard"
    checked_line("--", *line.split())
    printed, notices = checked_line("--print", "--", *line.split())
    path = tmp_path / "relay.toml"
    path.write_text(printed)
    path.chmod(0o600)
    found = config.read(str(path))
    assert found.problems.in_order() == []
    [entry] = found.entries
    shown = {name: getattr(same.options, name) for name in ("fail_fast", "verbose", "watch", "log_format", "debug")}
    top = {name: value for name in AT_THE_TOP if (value := getattr(found.file, name)) is not None}
    plan = plan_of(entry, Options(**shown, **top))
    for name in ("name", "routes", "options", "on", "over", "at_i2p", "trial", "route_key", "elsewhere"):
        assert getattr(plan, name) == getattr(same, name), name
    left_out = f"relay: {option}: a file has no such key; give it to relay up"
    assert notices == ([left_out] if option in WITHOUT_KEY else [])


def test_a_notice_names_all_options_that_a_file_has_no_key_for(checked_line):
    line = ("forward", ":0", "127.0.0.1:80", "--verbose", "--log-file", "access.log", "--fail-fast")
    printed, notices = checked_line("--print", "--", *line)
    assert tomllib.loads(printed)["log_file"] == "access.log"
    assert notices == ["relay: --fail-fast, --verbose: a file has no such key; give it to relay up"]
    assert checked_line("--", *line) == ("forward: listens on 127.0.0.1:0 → 127.0.0.1:80\n", [])


def test_the_tunnel_that_is_printed():
    printed = tomllib.loads(effective("forward", "5432", "db:5432", "--via", "ssh://me@bastion", "--drain", "5"))
    limits = {
        "nconnect": -1,
        "timeout": "none",
        "connect_timeout": 30.0,
        "idle_timeout": "none",
        "linger": 60.0,
        "first_byte_timeout": "none",
        "drain": 5.0,
    }
    tunnel = {"listen": "127.0.0.1:5432", "target": "db:5432", "via": ["ssh://me@bastion"], **limits}
    assert printed == {"tunnels": {"forward": tunnel}}


def test_what_is_usual_over_i2p_is_printed():
    tunnel = tomllib.loads(effective("expose", "127.0.0.1:8000", "--on", "i2p"))["tunnels"]["expose"]
    assert (tunnel["connect_timeout"], tunnel["linger"], tunnel["session"]) == (90.0, 5.0, "127.0.0.1:8000")


def test_the_defaults_are_printed_in_each_tunnel_and_secrets_never(checked):
    status, lines, problems = checked(
        '[defaults]\nlinger = 7\n[hops]\nb = "ssh://me:secret@b"\n'
        '[hops.c]\naddress = "ssh://c"\npassphrase = "secret"\n[hops.d]\naddress = "exec:nc"\n'
        '[tunnels.a]\nlisten = ":0"\ntarget = "x:1"\nvia = ["b"]\n',
        "--print",
    )
    assert (status, problems) == (0, [])
    printed = tomllib.loads("\n".join(lines))
    assert printed["tunnels"]["a"]["linger"] == 7
    assert printed["tunnels"]["a"]["via"] == ["b"]
    assert printed["hops"] == {
        "b": "ssh://me:***@b",
        "c": {"address": "ssh://c", "passphrase": "***"},
        "d": {"address": "exec:nc"},
    }


def test_the_words_of_programs_are_not_printed(checked):
    words = "exec:nc --password S3cr3t %h %p"
    status, lines, notices = checked(
        f'''
        [hops]
        a = "{words}"
        [hops.b]
        address = "{words}"
        [tunnels.one]
        listen = ":0"
        target = "x:1"
        via = [["{words}"], ["a"], ["b"]]
        [tunnels.two]
        listen = ":0"
        target = ["exec:nc S3cr3t", "exec:nc"]
        [tunnels.three]
        listen = "socks5://:0"
        rule = ["*.a={words}", "*.b=a", "*=direct"]
        via = ["{words}"]
        ''',
        "--print",
    )
    (notice,) = notices
    assert notice.startswith("relay: exec: its words are left out (…), as they may hold a secret; ")
    printed = tomllib.loads("\n".join(lines))
    assert (status, "S3cr3t" in str(printed)) == (0, False)
    assert printed["hops"] == {"a": "exec:nc …", "b": {"address": "exec:nc …"}}
    one, two, three = printed["tunnels"].values()
    assert (one["via"], two["target"]) == ([["exec:nc …"], ["a"], ["b"]], ["exec:nc …", "exec:nc"])
    assert (three["via"], three["rule"]) == (["exec:nc …"], ["*.a=***", "*.b=a", "*=direct"])


def test_nothing_is_looked_at_to_print():
    assert "no-such-host.invalid" in effective(
        "forward", "1", "no-such-host.invalid:1", "--via", "ssh://x?keyfile=none"
    )


@pytest.mark.parametrize(
    ("line", "status", "told"),
    [
        ("forward 5432", 2, "TARGET: missing; see relay forward --help"),
        ("forward 5432 db:5432 --nope", 2, "--nope: no such option"),
        ("forward 1 db:5432 --nconnect 0", 2, "--nconnect: must be at least 1, or -1 for no limit"),
        ("forward 1 db:5432 --via ssh://me:secret@bastion", 2, "all users of this machine can read a command line"),
        ("forward 1 no-such-host.invalid:5432", 1, "no-such-host.invalid: cannot resolve the host name"),
        ("expose 127.0.0.1:1 --on ssh://x --keys k", 2, "keys: it goes with an i2p: or tor: address of listen alone"),
        ("expose 127.0.0.1:1 --on i2p --keys k --transient", 2, "transient: a destination that is not saved"),
        ("socks tls://:1?cert=x", 2, "a proxy does not listen there"),
    ],
)
def test_a_wrong_command_line_is_one_line(line, status, told):
    done = run("check", "--", *shlex.split(line))
    assert (done.returncode, done.stdout) == (status, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert told in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.parametrize(
    ("words", "notice"),
    [
        ("0.0.0.0:0", "listen: the proxy has no password: any host that can connect may use it; set user and"),
        ("http://[::]:0", "listen: the proxy has no password"),
        ("sni://0.0.0.0:0 --rule a=refuse --rule *=direct", "rule: any host that can connect may reach any server, by"),
        ("sni://0.0.0.0:0 --rule *:443=socks5://localhost:1", "rule: any host that can connect may reach any server"),
        ("redirect://0.0.0.0:0", ""),
        (":0", ""),
        ("sni://127.0.0.1:0 --rule *=direct", ""),
        ("sni://0.0.0.0:0 --rule *=tcp://127.0.0.1:1 --rule *.a=direct --rule *=refuse", ""),
    ],
)
def test_a_proxy_that_all_hosts_can_use_is_noticed(words, notice):
    done = run("check", "--", "socks", *words.split())
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    assert done.stderr.startswith(f"relay: {notice}") if notice else done.stderr == ""


def test_more_than_one_file_and_none(tmp_path):
    done = run("check", "a", "b")
    assert (done.returncode, done.stderr.startswith("relay: b: expected one file, or one of")) == (2, True)
    done = run("check", cwd=tmp_path, env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path)})
    assert done.returncode == 2
    assert "relay.toml: no such file here" in done.stderr


def test_nothing_listens_while_it_checks(checked):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, lines, _ = checked(f'[tunnels.a]\nlisten = {port}\ntarget = "localhost:1"\n')
    assert (status, lines) == (0, [f"a: listens on 127.0.0.1:{port} → localhost:1"])


def test_the_schema():
    done = run("check", "--schema")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == config.schema()


def test_help_has_examples_and_they_are_right():
    done = run("check", "--help", env={**os.environ, "COLUMNS": "200"})
    assert (done.returncode, done.stderr) == (0, "")
    examples = re.findall(r"^relay check (.*?)(?: \(.*)?$", check.EXAMPLES, re.MULTILINE)
    assert len(examples) >= 5
    for example in examples:
        assert squeezed(example) in squeezed(done.stdout)
        words = shlex.split(example)
        if "--" in words:
            assert run("check", "--print", "--", *words[words.index("--") + 1 :]).returncode == 0


def test_it_names_all_targets(checked):
    status, lines, _ = checked("""
        [tunnels.web]
        listen = "127.0.0.1:0"
        target = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:1"]
        """)
    assert (status, lines) == (0, ["web: listens on 127.0.0.1:0 → 127.0.0.1:1, 127.0.0.1:2"])
