"""Figures of the package's size and shape: ``python tests/support/figures.py [CHECKOUT]``, a line each.

The second half runs a relay with one plain TCP tunnel, and counts its own calls with a profiler: those of a reload that
moves the tunnel to another port (the second one, when all is imported), of ``/metrics`` (the second one, too), and of
an upgrade, in the old process.
"""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Those of a tunnel that the commands, the file, Python and workers know.
OPTIONS = {"nconnect", "timeout", "idle_timeout", "linger", "lifetime", "first_byte_timeout", "warm", "drain", "limit"}
OPTIONS |= {"access", "proxy_header", "send_proxy", "tag"}
RULER = re.compile(r"#\s*-{2,}")
NO_REASON = re.compile(r"#\s*(noqa|type:|fmt:|pragma|!|/)")
PUBLIC = {"_replace", "_asdict", "_make", "_fields", "_exit"}  # of named tuples and os, whose pages describe them
QUIET = 1.5  # seconds after which nothing more is expected
DEADLINE = 30.0


def sources(folder: Path) -> dict[Path, str]:
    """Return the texts of all Python files of a folder."""
    return {path: path.read_text() for path in sorted(folder.rglob("*.py"))}


def lines(texts: dict[Path, str]) -> int:
    """Return the number of their lines."""
    return sum(text.count("\n") for text in texts.values())


def reasons(text: str) -> int:
    """Return the number of lines that are comments, without rulers and remarks for tools."""
    found = [line.strip() for line in text.splitlines() if line.lstrip().startswith("#")]
    return sum(not RULER.match(line) and not NO_REASON.match(line) for line in found)


def options_named(tree: ast.AST) -> Iterator[int]:
    """Yield a line for each place that names an option of a tunnel: a parameter, field, keyword or string."""
    for node in ast.walk(tree):
        match node:
            case ast.arg(arg=name) | ast.keyword(arg=name) | ast.AnnAssign(target=ast.Name(id=name)):
                pass
            case ast.Constant(value=str(name)):
                pass
            case _:
                continue
        if name in OPTIONS:
            yield node.lineno


def private_names(text: str) -> int:
    """Return how often a test touches a private name of something else, or replaces something."""
    names = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and node.attr not in PUBLIC
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    ]
    return len(names) + len(re.findall(r"monkeypatch\.\w+\(", text))


def static(checkout: Path) -> Iterator[tuple[str, object]]:
    """Yield the figures that reading gives."""
    package, tests = sources(checkout / "relay"), sources(checkout / "tests")
    trees = {path: ast.parse(text) for path, text in package.items()}
    classes = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    protocols = [one for one in classes if any(ast.unparse(base).startswith("Protocol") for base in one.bases)]
    seen = sum(
        "as the" in (ast.get_docstring(one) or "") or "sees" in (ast.get_docstring(one) or "") for one in protocols
    )
    flat = Counter(str(path.parent.relative_to(checkout)) for path in package)
    yield "lines of relay/", lines(package)
    yield "files of relay/", len(package)
    yield "classes", len(classes)
    yield "Protocols", len(protocols)
    yield 'Protocols "as another sees it"', seen
    yield "largest flat folder", " ".join(map(str, flat.most_common(1)[0]))
    room = [text for path, text in package.items() if {"cli", "daemon"} & set(path.relative_to(checkout).parts)]
    yield "getattr and hasattr in cli and daemon", sum(len(re.findall(r"\b(?:get|has)attr\(", text)) for text in room)
    yield "places that name an option of a tunnel", sum(len(list(options_named(tree))) for tree in trees.values())
    yield "lines of comments that are no rulers", sum(map(reasons, package.values()))
    yield "lines of tests/", lines(tests)
    nailed = {path: text for path, text in tests.items() if private_names(text) >= 5}
    yield "lines of tests with five private names or more", lines(nailed)


class Counted:
    """Counts the calls of functions of the package, in all threads, while it is switched on."""

    def __init__(self, package: str) -> None:
        self._package = package
        self.is_on = False
        self.calls: Counter[Any] = Counter()
        threading.setprofile(self._note)
        sys.setprofile(self._note)

    def _note(self, frame: Any, event: str, _: object) -> None:
        if self.is_on and event == "call" and frame.f_code.co_filename.startswith(self._package):
            self.calls[frame.f_code, threading.get_ident()] += 1

    def during(self, work: Callable[[], object]) -> None:
        """Count while this works, and until nothing more is called."""
        self.calls.clear()
        self.is_on = True
        work()
        last = -1
        while (count := sum(self.calls.values())) != last:
            last = count
            time.sleep(QUIET)
        self.is_on = False

    def figures(self) -> tuple[int, int, int, int]:
        """Return the numbers of calls, functions, files and threads."""
        calls = {one: count for one, count in self.calls.items() if one[0].co_name != "<module>"}
        codes = {code for code, _ in calls}
        return (
            sum(calls.values()),
            len(codes),
            len({code.co_filename for code in codes}),
            len({one for _, one in calls}),
        )


def listens(port: int) -> bool:
    """Return whether a program listens at a port."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def wait(until: Callable[[], bool]) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + DEADLINE
    while not until():
        if time.monotonic() > deadline:
            raise SystemExit("it does not come")
        time.sleep(0.05)


def get(port: int) -> None:
    """Ask for the metrics."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        while client.recv(1 << 16):
            pass


def inside(checkout: Path, folder: Path, what: str) -> None:
    """Run a relay in this process, and write the figures of what it does to a file."""
    ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(5)]
    first, second, third, status, target = (one.getsockname()[1] for one in ports)
    for one in ports[:4]:
        one.close()
    file = folder / "relay.toml"

    def write(port: int) -> None:
        file.write_text(
            f'control = "{folder}/control"\nstatus = "127.0.0.1:{status}"\n[tunnels.one]\n'
            f'listen = "127.0.0.1:{port}"\ntarget = "127.0.0.1:{target}"\nlinger = 0\n'
        )

    def reload_to(port: int) -> None:
        write(port)
        os.kill(os.getpid(), signal.SIGHUP)
        wait(lambda: listens(port))

    write(first)
    counted = Counted(str(checkout / "relay"))

    def report() -> None:
        part = folder / "part"
        part.write_text(json.dumps(counted.figures()))
        part.rename(folder / what)  # the process may end at any moment

    def work() -> None:
        wait(lambda: listens(first))
        if what == "upgrade":
            counted.is_on = True
            control_relay(checkout, folder, "upgrade")
            while True:  # this process ends without notice
                report()
                time.sleep(0.1)
        elif what == "reload":
            counted.during(lambda: reload_to(second))
            counted.during(lambda: reload_to(third))
        else:
            counted.during(lambda: get(status))
            counted.during(lambda: get(status))
        report()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=work, daemon=True).start()
    sys.argv = ["relay", "up", str(file)]
    runpy.run_module("relay", run_name="__main__", alter_sys=True)


def control_relay(checkout: Path, folder: Path, word: str) -> subprocess.Popen[bytes]:
    """Start ``relay ctl``."""
    command = [sys.executable, "-m", "relay", "ctl", "--control", str(folder / "control"), word]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def running(checkout: Path, what: str) -> tuple[int, int, int, int]:
    """Return the numbers of calls, functions, files and threads of what a running relay does."""
    with tempfile.TemporaryDirectory(prefix="relay-figures-") as name:
        folder, log = Path(name), Path(name) / "log"
        with log.open("w") as output:
            command = [sys.executable, __file__, str(checkout), name, what]
            environment = {**os.environ, "PYTHONPATH": str(checkout)}
            subprocess.run(command, env=environment, stdout=output, stderr=output, timeout=2 * DEADLINE, check=False)
        if what == "upgrade":
            wait(lambda: control_relay(checkout, folder, "stop").wait() == 0)  # once the new process listens
        if not (folder / what).exists():
            raise SystemExit(f"{what}: {log.read_text()}")
        calls, functions, files, threads = json.loads((folder / what).read_text())
        return calls, functions, files, threads


def main(arguments: list[str]) -> None:
    """Print the figures, or count what one relay does."""
    checkout = Path(arguments[0] if arguments else Path(__file__).parents[2]).resolve()
    if len(arguments) == 3:
        sys.path.insert(0, str(checkout))
        return inside(checkout, Path(arguments[1]), arguments[2])
    for name, figure in static(checkout):
        print(f"{name}: {figure}")
    for what in ("reload", "metrics", "upgrade"):
        calls, functions, files, threads = running(checkout, what)
        print(f"{what}: {calls} calls of {functions} functions in {files} files on {threads} threads")
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
