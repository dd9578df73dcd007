"""Programs of Debian meet their servers behind two real sshds, and get the very bytes that they get without them."""

import contextlib
import os
import re
import shutil
import subprocess

import pytest
from command_rig import commands
from helpers import BLOCK
from postgres import PAGE, PASSWORD
from sshd import FarEnd

import relay

LISTENING = re.compile(r"listening on (\S+) → \S+ via .+\n")
WAYS = {
    "forward-paramiko": "a port",
    "forward-openssh": "a port",
    "forward at a path-paramiko": "a path",
    "local-openssh": "local",
}

ROWS = "SELECT n, md5(n::text), CASE WHEN n % 3 > 0 THEN repeat('ä', n % 100) END FROM generate_series(1, 50000) AS n"
LINES = b"".join(b"%d\t%s\n" % (number, b"x" * (number % 200)) for number in range(20_000))
UPLOAD = b"CREATE TEMP TABLE t (n int, x text);\nCOPY t FROM STDIN;\n" + LINES + b"\\.\n"
CHECK = b"SELECT count(*), sum(n), md5(string_agg(x, ',' ORDER BY n)) FROM t;\n"


@pytest.fixture
def chain(sshd, make_sshd):
    """Makes chains through one real sshd to the next, ``chain(backend)``; both are on this machine."""
    return lambda backend: [FarEnd("sshd", backend, rig).url for rig in (sshd, make_sshd())]


@pytest.fixture(params=WAYS)
def reach(request, chain, tmp_path):
    """Makes ways, ``reach(target, name)``: a context manager that gives a path, or a host and a port."""
    how, hops = WAYS[request.param], chain(request.param.rpartition("-")[2])

    @contextlib.contextmanager
    def make(target, name="socket"):
        if how == "local":
            with relay.local(target, hops, name=name) as path:
                yield path
        elif how == "a path":
            with forwarded(target, hops, f"unix://{tmp_path}/{name}") as place:
                yield place.removeprefix("unix://")
        else:
            with forwarded(target, hops, ":0") as place:
                yield tuple(place.split(":"))

    return make


@contextlib.contextmanager
def forwarded(target, hops, listen):
    """A ``relay forward`` that runs; where it says that it listens."""
    with commands() as start:
        command = start(listen, target, *(word for hop in hops for word in ("--via", hop)))
        line = command.process.stdout.readline()
        match = LISTENING.fullmatch(line)
        assert match, f"{line!r}, then {command.wait()}"
        yield match[1]
        status, said = command.end()
        assert (status, said.endswith(", 0 failed\n")) == (0, True), said


def run(program, *arguments, data=b"", **environment):
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    argv = [program, *map(str, arguments)]
    clean = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": "/nonexistent", **environment}
    done = subprocess.run(argv, input=data, capture_output=True, env=clean, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def psql(place, *arguments, data=b""):
    """``place``: the path of libpq's socket, or a host and a port."""
    host, port = (os.path.dirname(place), 5432) if isinstance(place, str) else place
    where = "-h", host, "-p", port, "-U", "relay", "-d", "postgres"
    return run(
        "psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", *where, *arguments, data=data, PGPASSWORD=PASSWORD
    )


@pytest.mark.parametrize("reach", ["forward-paramiko", "local-openssh"], indirect=True)
def test_psql(reach, database):
    beside = "127.0.0.1", database.port
    with reach(database.address, ".s.PGSQL.5432") as place:
        for arguments, data in ((("-c", ROWS), b""), (("-c", f"COPY ({ROWS}) TO STDOUT"), b""), ((), UPLOAD + CHECK)):
            answer = psql(place, *arguments, data=data)
            assert answer == psql(beside, *arguments, data=data)
            assert answer.count(b"\n") in (50_000, 1)


@pytest.mark.parametrize("reach", ["forward-openssh", "forward at a path-paramiko"], indirect=True)
def test_psql_to_a_socket_on_the_server(reach, database):
    """A machine on which the database believes every client of that machine."""
    with reach(f"unix://{database.socket}", ".s.PGSQL.5432") as place:
        assert psql(place, "-c", ROWS) == psql(("127.0.0.1", database.port), "-c", ROWS)


def redis_cli(place, *arguments, data=b""):
    where = ("-s", place) if isinstance(place, str) else ("-h", place[0], "-p", place[1])
    return run("redis-cli", *where, *arguments, data=data)


@pytest.mark.parametrize("reach", ["forward-paramiko", "local-openssh"], indirect=True)
def test_redis_cli(reach, redis_server):
    beside = "127.0.0.1", redis_server.port
    with reach(redis_server.address) as place:
        assert redis_cli(place, "-x", "SET", "block", data=BLOCK) == b"OK\n"
        assert redis_cli(beside, "--raw", "GET", "block") == BLOCK + b"\n"
        assert redis_cli(place, "--raw", "GET", "block") == BLOCK + b"\n"
        many = b"".join(b"RPUSH list %d\r\n" % number for number in range(20_000))
        redis_cli(beside, "DEL", "list")
        assert b"errors: 0, replies: 20000\n" in redis_cli(place, "--pipe", data=many)
        whole = redis_cli(place, "LRANGE", "list", 0, -1)
        assert whole == redis_cli(beside, "LRANGE", "list", 0, -1) == b"".join(b"%d\n" % n for n in range(20_000))


@pytest.mark.parametrize("reach", ["forward-openssh", "forward at a path-paramiko"], indirect=True)
def test_curl(reach, web_server):
    with reach(web_server.address) as place:
        if isinstance(place, str):
            options, url = ("--unix-socket", place), "http://web/page"
        else:
            options, url = (), "http://{}:{}/page".format(*place)
        common = "-s", "--fail", "--noproxy", "*", *options
        assert run("curl", *common, url).decode() == PAGE
        assert run("curl", *common, "-r", "1000-1999", url).decode() == PAGE[1000:2000]
        assert run("curl", *common, *[url] * 5).decode() == PAGE * 5  # over one connection


@pytest.mark.parametrize("reach", ["forward-paramiko", "local-openssh"], indirect=True)
def test_curl_over_tls(reach, web_server, certificates):
    """Which it speaks with the web server itself."""
    with reach(f"127.0.0.1:{web_server.tls_port}") as place:
        to = ("--unix-socket", place) if isinstance(place, str) else ("--connect-to", "::{}:{}".format(*place))
        common = "-s", "--fail", "--noproxy", "*", "--cacert", certificates.ca
        assert run("curl", *common, *to, "https://localhost/page").decode() == PAGE


def git(folder, *arguments):
    identity = {f"GIT_{who}_{what}": "me" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return run("git", "-C", folder, *arguments, GIT_CONFIG_NOSYSTEM="1", GIT_TERMINAL_PROMPT="0", **identity)


def everything_in(repository):
    """All that a repository has and where its names point."""
    git(repository, "fsck", "--strict")
    return git(repository, "cat-file", "--batch-all-objects", "--batch-check"), git(repository, "rev-parse", "HEAD")


def test_git_clones_and_pushes(chain, backend, git_server, tmp_path):
    pushed = f"pushed by {backend}"
    with forwarded(git_server.address, chain(backend), ":0") as place:
        git(tmp_path, "clone", "--quiet", f"git://{git_server.address}/origin", "beside")
        git(tmp_path, "clone", "--quiet", f"git://{place}/origin", "through")
        assert everything_in(tmp_path / "through") == everything_in(tmp_path / "beside")
        assert git(tmp_path / "through", "status", "--porcelain") == b""
        (tmp_path / "through" / pushed).write_bytes(BLOCK * 4)
        git(tmp_path / "through", "add", pushed)
        git(tmp_path / "through", "commit", "--quiet", "-m", pushed)
        git(tmp_path / "through", "push", "--quiet", "origin", "main")
        git(tmp_path / "beside", "pull", "--quiet")
        assert (tmp_path / "beside" / pushed).read_bytes() == BLOCK * 4
        assert everything_in(tmp_path / "through") == everything_in(git_server.repository)
