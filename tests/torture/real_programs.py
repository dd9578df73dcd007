"""Real programs over resumable streams, whose SSH connections are killed one after the other.

Each program has a ``relay forward`` of its own, or is behind ``relay pipe``; a far end that the login starts dials
their servers. A program that ends begins again until all kills are done, and every answer, file and line is compared.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from helpers import WAIT, Thread, wait_until
from sshd import Sshd, server_url

PROGRAMS = Path(sys.executable).parent
_SIZE = 1 << 30  # bytes of the file that rsync copies
_POSTGRES = "/usr/lib/postgresql"


class RealPrograms:
    """The servers, the programs, and the kills.

    :param backend: of the near ends.
    :param seed: decides the moments of the kills.
    :param kills: how many.
    """

    def __init__(self, folder: Path, backend: str, seed: int, kills: int) -> None:
        os.chmod(folder, 0o711)  # PostgreSQL does not run as root
        self._folder = folder
        self._chance = random.Random(seed)
        self._kills = kills
        self._stack = contextlib.ExitStack()
        self.killed = 0
        self.done: dict[str, int] = {}
        (runtime := folder / "run").mkdir(mode=0o700)
        (folder / "sshd").mkdir()
        self._sshd = Sshd(folder / "sshd", config=[f"SetEnv PATH={PROGRAMS}:/usr/bin:/bin XDG_RUNTIME_DIR={runtime}"])
        self._hop = server_url(self._sshd.start().server, backend=backend)
        self._stack.callback(self._sshd.stop)
        self._stack.callback(self._end_far_end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self) -> str:
        """Kill connections until all kills are done, and return what the programs have done meanwhile.

        :raises AssertionError: if one has failed, or got other bytes.
        """
        bodies: dict[str, Callable[[], Iterator[None]]] = {
            "rsync of 1 GiB": self._rsync,
            "git clone": self._git,
            "ssh session, lines": self._ssh,
            "redis, messages": self._redis,
        }
        without = "" if os.path.isdir(_POSTGRES) else "; without PostgreSQL, which is not installed"
        if not without:
            self._start_postgres()
            bodies |= {"psql, statements of one transaction": self._psql, "pg_dump": self._pg_dump}
        threads = {name: Thread(self._repeat, name, body) for name, body in bodies.items()}

        def all_work() -> bool:
            return len(self.done) == len(bodies) or not all(thread.is_alive() for thread in threads.values())

        wait_until(all_work, 10 * WAIT)
        while self.killed < self._kills and all(thread.is_alive() for thread in threads.values()):
            logins = self._sshd.logins
            self._sshd.kill_sessions()
            self.killed += 1
            wait_until(lambda before=logins: self._sshd.logins > before)
            time.sleep(self._chance.uniform(0.0, 0.5))  # while bytes flow
        self._kills = 0
        for name, thread in threads.items():
            try:
                thread.result(10 * WAIT)
            except BaseException as error:
                raise AssertionError(f"{name}, after {self.killed} kills: {error}") from error
        return f"{self.killed} kills; " + ", ".join(f"{name}: {count}" for name, count in self.done.items()) + without

    def _repeat(self, name: str, body: Callable[[], Iterator[None]]) -> None:
        for _ in body():
            self.done[name] = self.done.get(name, 0) + 1
            if self.killed >= self._kills:
                return

    # -- the tools ----------------------------------------------------------------------------------------------------

    def _start(self, *command: object, **options: Any) -> subprocess.Popen[Any]:
        process = subprocess.Popen([*map(str, command)], **options)

        def end() -> None:
            process.terminate()
            process.wait(WAIT)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()

        self._stack.callback(end)
        return process

    def _forward(self, port: int) -> int:
        """Return a port that leads to another one, through the hop."""
        command = [PROGRAMS / "relay", "forward", "0", f"127.0.0.1:{port}", "--via", self._hop, "--resume"]
        with (self._folder / "relay.log").open("ab") as log:
            process = self._start(*command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        line = process.stdout.readline()  # listening on 127.0.0.1:40001 → …
        return int(line.split(" → ")[0].rpartition(":")[2])

    def _serve(self, *command: object, port: int, **options: Any) -> None:
        self._start(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(listens)

    def _end_far_end(self) -> None:
        folder = str(self._folder).encode()
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"resume-server" in words and folder in words:
                    os.kill(int(pid), signal.SIGKILL)

    # -- the programs -------------------------------------------------------------------------------------------------

    def _rsync(self) -> Iterator[None]:
        source, port = self._folder / "source", _free_port()
        source.mkdir()
        with (source / "file").open("wb") as file:
            for _ in range(_SIZE >> 20):
                file.write(self._chance.randbytes(1 << 20))
        config = self._folder / "rsyncd.conf"
        config.write_text(f"use chroot = no\n[files]\npath = {source}\nuid = root\ngid = root\n")
        self._serve("rsync", "--daemon", "--no-detach", f"--config={config}", f"--port={port}", port=port)
        through = self._forward(port)
        copy = self._folder / "copy"
        while True:
            shutil.rmtree(copy, ignore_errors=True)
            _run("rsync", "-aW", f"rsync://127.0.0.1:{through}/files/", f"{copy}/")
            assert filecmp.cmp(source / "file", copy / "file", shallow=False)
            yield

    def _git(self) -> Iterator[None]:
        origin, port = self._folder / "origin", _free_port()
        who = ("-c", "user.name=relay", "-c", "user.email=relay@localhost")
        _run("git", "init", "--quiet", origin)
        for number in range(20):
            (origin / f"file{number}").write_bytes(self._chance.randbytes(4 << 20))
            _run("git", "-C", origin, "add", ".")
            _run("git", "-C", origin, *who, "commit", "--quiet", "--message", f"{number}")
        head = _run("git", "-C", origin, "rev-parse", "HEAD")
        options = ("--export-all", "--reuseaddr", f"--base-path={self._folder}", "--listen=127.0.0.1", f"--port={port}")
        self._serve("git", "daemon", *options, port=port)
        through = self._forward(port)
        clone = self._folder / "clone"
        while True:
            shutil.rmtree(clone, ignore_errors=True)
            _run("git", "clone", "--quiet", f"git://127.0.0.1:{through}/origin", clone)
            assert _run("git", "-C", clone, "rev-parse", "HEAD") == head
            _run("git", "-C", clone, "fsck", "--strict", "--no-progress")
            yield

    def _ssh(self) -> Iterator[None]:
        (self._folder / "other").mkdir()
        other = Sshd(self._folder / "other").start()
        self._stack.callback(other.stop)
        far = other.server
        words = [PROGRAMS / "relay", "pipe", "%h:%p", "--via", self._hop.replace("%", "%%"), "--resume"]
        settings = {
            "HostName": far.host,
            "Port": far.port,
            "User": far.user,
            "IdentityFile": far.keyfile,
            "UserKnownHostsFile": far.known_hosts,
            "BatchMode": "yes",
            "ProxyCommand": shlex.join(map(str, words)),
        }
        config = self._folder / "config"
        config.write_text("Host far\n" + "".join(f"  {name} {value}\n" for name, value in settings.items()))
        command = ("ssh", "-F", config, "far", "cat")
        session = self._start(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        number = 0
        while True:
            number += 1
            yield self._ask(session, b"%d\n" % number, b"%d\n" % number)
            time.sleep(0.01)  # as a person types

    def _ask(self, session: Any, line: bytes, answer: bytes) -> None:
        session.stdin.write(line)
        found = session.stdout.readline()
        assert found == answer, (line, found)

    def _redis(self) -> Iterator[None]:
        port = _free_port()
        self._serve("redis-server", "--port", port, "--save", "", "--dir", self._folder, port=port)
        command = ("redis-cli", "-p", self._forward(port), "subscribe", "news")
        subscriber = self._start(*command, stdout=subprocess.PIPE, bufsize=0)
        assert subscriber.stdout is not None
        while subscriber.stdout.readline().rstrip() != b"1":
            pass
        number = 0
        while True:
            number += 1
            _run("redis-cli", "-p", port, "publish", "news", f"message {number}")
            told = [subscriber.stdout.readline().rstrip() for _ in range(3)]
            assert told == [b"message", b"news", b"message %d" % number], told
            yield

    def _start_postgres(self) -> None:
        programs = max(Path(_POSTGRES).glob("*/bin"))
        data, port = self._folder / "postgres", _free_port()
        data.mkdir()
        shutil.chown(data, "postgres", "postgres")
        as_user: Any = {"user": "postgres", "cwd": data, "extra_groups": []}
        _run(programs / "initdb", "--auth=trust", "--username=postgres", "--no-sync", data, **as_user)
        options = ("-D", data, "-k", data, "-h", "127.0.0.1", "-p", port, "-F")
        self._serve(programs / "postgres", *options, port=port, **as_user)
        self._database = port, f"postgresql://postgres@127.0.0.1:{port}/postgres"
        rows = "insert into big select n, repeat(md5(n::text), 30) from generate_series(1, 100000) n"
        statements = ("create table big (n int, text text)", rows, "create table small (n int)")
        wait_until(lambda: subprocess.run([programs / "pg_isready", "-q", "-d", self._database[1]]).returncode == 0)
        for statement in statements:
            _run("psql", "--quiet", self._database[1], "--command", statement)

    def _psql(self) -> Iterator[None]:
        url = f"postgresql://postgres@127.0.0.1:{self._forward(self._database[0])}/postgres"
        options = ("--no-psqlrc", "--tuples-only", "--no-align", "--quiet", "--set=ON_ERROR_STOP=1")
        session = self._start("psql", *options, url, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._ask(session, b"begin; select 'begun';\n", b"begun\n")
        number, first = 0, ""
        while True:
            number += 1
            statement = f"insert into small values ({number}); select count(*), txid_current_if_assigned() from small;"
            session.stdin.write(f"{statement}\n".encode())
            count, _, transaction = session.stdout.readline().decode().partition("|")
            assert int(count) == number, count
            first = first or transaction
            assert transaction == first
            yield

    def _pg_dump(self) -> Iterator[None]:
        port, direct = self._database
        options = ("--table=big", "--data-only")

        def dump(url: str) -> list[bytes]:
            lines = _run("pg_dump", *options, url).splitlines()
            return [line for line in lines if b"restrict" not in line]  # which has another random word each time

        whole = dump(direct)
        url = f"postgresql://postgres@127.0.0.1:{self._forward(port)}/postgres"
        while True:
            assert dump(url) == whole
            yield


def _run(*command: object, **options: Any) -> bytes:
    done = subprocess.run([*map(str, command)], capture_output=True, **options)
    assert done.returncode == 0, (command, done.stderr[-1000:])
    return done.stdout


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
