"""Fixtures of every test: a check for leaks after each, skips that are heard, and a few fixtures."""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import itertools
import logging
import os
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import trustme

pytest.register_assert_rewrite("helpers")

from helpers import WAIT, Certificates, Relayed, Server, echo, makes, reserved_port  # noqa: E402  (after the line above, which must come first)

from relay.process import start  # noqa: E402
from relay.testing import Leaks  # noqa: E402

# A busy machine takes seconds for one example; the limit of a test is pytest-timeout's.
hypothesis.settings.register_profile("relay", deadline=None)
# `make mutants`: a few examples, the same each time, and no smallest example for each of a thousand failures.
hypothesis.settings.register_profile(
    "mutants",
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=list(hypothesis.HealthCheck),
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)
hypothesis.settings.load_profile("relay")

LEAVING = WAIT  # seconds for what is on its way out when a test ends
CI = os.environ.get("CI") == "true"

# Hundreds of tests start a program that imports relay: it is compiled once for all of them, not again by each; and so
# are the tests, not again by each of the processes that run them side by side.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# The default control sockets of programs that tests start; no relay of the machine is among them.
_runtime = tempfile.TemporaryDirectory(prefix="relay-run-")
atexit.register(_runtime.cleanup)
os.environ["XDG_RUNTIME_DIR"] = _runtime.name
os.environ["RUNTIME_DIRECTORY"] = _runtime.name

# A shell without job control starts what it puts into the background with SIGINT ignored, and so would be all programs
# that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # by nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test leaves a descriptor (a socket, a pipe), a thread or a child process."""
    import i2p_world

    wanted = i2p_world.wanted_by(request.node)
    networks = request.getfixturevalue("i2p_networks") if wanted else None  # which outlive the test
    made = networks.made if networks is not None else 0
    if "warm_relay" in sys.modules:
        request.getfixturevalue("warm_command")  # and so does this
    leaks = Leaks()
    yield
    if networks is not None:
        networks.check(wanted)
        if networks.made > made:  # their routers did not meet, and the new ones would count as left behind
            return
    is_mutant = request.config.getoption("--hypothesis-profile") == "mutants"  # which leaves much behind, in one test
    left = leaks.left(timeout=3.0 if is_mutant else LEAVING)
    assert not left, "left behind:\n  " + "\n  ".join(left)


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """A test that changes the level of relay's log, as a worker process does, changes it for itself only."""
    levels = [(logger, logger.level) for logger in map(logging.getLogger, ("relay", "relay.cli"))]
    yield
    for logger, level in levels:
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def descriptor_limit() -> Iterator[None]:
    """A test that runs a command in this process, which keeps descriptors in reserve, does so for itself only."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """With ``CI=true`` a test that was skipped has failed, unless this machine's kernel cannot run it.

    What the real routers of a failed test say at last is a part of its report.
    """
    report = (yield).get_result()  # type: ignore[misc]
    _fail_if_skipped(report)
    networks = getattr(item, "funcargs", {}).get("i2p_networks")
    if report.failed and networks is not None:
        import i2p_world

        report.sections += networks.last_lines(i2p_world.wanted_by(item))


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    """The same for a whole file."""
    report = (yield).get_result()  # type: ignore[misc]
    _fail_if_skipped(report)


def _fail_if_skipped(report: Any) -> None:
    if not CI or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = _reason(report)
    if not reason.startswith("Skipped: this machine "):  # what is missing can be installed
        report.outcome = "failed"
        report.longrepr = f"with CI=true nothing may be skipped: {reason}"


def _reason(report: Any) -> str:
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say aloud what was not tested, and what was measured."""
    skipped = terminalreporter.getreports("skipped")
    if skipped:
        terminalreporter.section(f"{len(skipped)} NOT TESTED", yellow=True)
        for report in skipped:
            terminalreporter.write_line(f"{report.nodeid}: {_reason(report)}")
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "measured":
                terminalreporter.write_line(value)


ENGINES: dict[str, list[tuple[Any, str]]] = {
    "epoll and splice": [],
    "poll": [(select, "epoll"), (os, "eventfd")],
    "no splice": [(os, "splice")],
}


@pytest.fixture(params=ENGINES)
def any_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test once for each set of system calls that a platform may have; returns which.

    A tunnel looks for them when it is made.
    """
    for module, name in ENGINES[request.param]:
        monkeypatch.delattr(module, name, raising=False)
    return str(request.param)


@pytest.fixture
def poll_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switches epoll, eventfd and splice off at once, as on macOS and BSD."""
    for module, name in ENGINES["poll"] + ENGINES["no splice"]:
        monkeypatch.delattr(module, name, raising=False)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Makes servers, ``serve(handler, family=AF_INET)``, that end with the test."""
    yield from makes(Server)


@pytest.fixture
def echo_server(serve: Callable[..., Server]) -> Server:
    """A TCP server that sends back what it gets, and ends when its client has."""
    return serve(echo)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A certificate authority of the tests' own, and a certificate of it for ``localhost`` and ``127.0.0.1``."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    leaf.private_key_pem.write_to_path(str(folder / "key.pem"))
    leaf.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    return Certificates(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")


@pytest.fixture
def relayed(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Relayed]]:
    """Makes tunnels whose target the test plays itself; see :class:`helpers.Relayed`."""
    numbers = itertools.count()

    def make(factory: Any = None, **options: Any) -> Relayed:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        tls = "tls" in (options.get("way_in"), options.get("way_out"))
        return Relayed(factory, folder, request.getfixturevalue("certificates") if tls else None, **options)

    yield from makes(make)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listening TCP socket on loopback, whose ``accept`` has a deadline."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
        listening.settimeout(WAIT)
        yield listening


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two Unix sockets that are connected to each other."""
    near, far = socket.socketpair()
    with near, far:
        yield near, far


@pytest.fixture
def target(echo_server: Server) -> str:
    """The address of a server that repeats what it gets, as text."""
    return "{}:{}".format(*echo_server.address)


@pytest.fixture
def reserved() -> Iterator[int]:
    """A port of 127.0.0.1 that only a program gets which asks for it by its number; see :func:`reserved_port`."""
    with reserved_port() as port:
        yield port


# SSH. The servers of a whole session start before the leak check of the first test that wants them.


@pytest.fixture(scope="session", autouse=True)
def spawner_thread() -> None:
    """The thread that makes all children outlives every test, so it is there before the first one."""
    start(["true"]).wait(WAIT)


@pytest.fixture(scope="session")
def warm_command() -> Iterator[None]:
    """The process that forks commands, for the files that import ``command_rig``; see ``warm_relay.py``."""
    import warm_relay

    warm_relay.warm()
    yield
    warm_relay.cool()


@pytest.fixture(name="start")
def start_command(warm_command: None) -> Iterator[Callable[..., Any]]:
    """Starts commands, ``start(*arguments, command="forward")``, which end with the test; see ``command_rig.py``."""
    from command_rig import commands

    with commands() as make:
        yield make


@pytest.fixture
def double() -> Any:
    """A relay that the commands for operators and the pages show; see ``instance_double.py``."""
    from instance_double import Double

    return Double()


@pytest.fixture
def environment(runtime_directory: Path) -> dict[str, str]:
    """That of commands whose control sockets no other test sees."""
    return {**os.environ}


@pytest.fixture(scope="session")
def openssh_server(tmp_path_factory: pytest.TempPathFactory, spawner_thread: None) -> Iterator[Any]:
    """The one behind ``sshd``."""
    import sshd

    if sshd.PROGRAM is None:
        pytest.skip("there is no sshd (Debian: openssh-server)")
    server = sshd.Sshd(tmp_path_factory.mktemp("sshd"))
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def sshd(openssh_server: Any) -> Iterator[Any]:
    """A real OpenSSH server that is there for all tests: it may be frozen, but who kills one wants ``make_sshd``."""
    openssh_server.forget()
    yield openssh_server
    openssh_server.thaw()


@pytest.fixture
def make_sshd(tmp_path: Path, spawner_thread: None) -> Iterator[Callable[..., Any]]:
    """Makes real OpenSSH servers of the test's own, ``make_sshd(*lines of its configuration)``, which run already."""
    import sshd

    servers: list[sshd.Sshd] = []

    def make(*config: str, **options: Any) -> sshd.Sshd:
        if sshd.PROGRAM is None:
            pytest.skip("there is no sshd (Debian: openssh-server)")
        folder = tmp_path / f"sshd-{len(servers)}"
        folder.mkdir()
        servers.append(sshd.Sshd(folder, config=config, **options))
        return servers[-1].start()

    yield make
    for server in servers:
        server.stop()


@pytest.fixture
def make_ssh_server() -> Iterator[Callable[..., Any]]:
    """Makes embedded servers, ``make_ssh_server(**options of relay.testing.SSHServer)``."""
    from relay.testing import SSHServer

    yield from makes(SSHServer)


@pytest.fixture
def ssh_server(make_ssh_server: Callable[..., Any]) -> Any:
    """An embedded server that lets its own key in and forwards to anywhere."""
    return make_ssh_server()


@pytest.fixture(params=["paramiko", "openssh"])
def backend(request: pytest.FixtureRequest, spawner_thread: None) -> str:
    """Runs a test with each backend; returns its name."""
    if request.param == "openssh" and shutil.which("ssh") is None:
        pytest.skip("there is no ssh (Debian: openssh-client)")
    return str(request.param)


SSH_SERVERS = {"embedded": "ssh_server", "sshd": "sshd"}


@pytest.fixture(params=SSH_SERVERS)
def far_end(request: pytest.FixtureRequest, backend: str, openssh_server: Any) -> Any:
    """Runs a test with each backend against each server, which the test must not end; see :class:`sshd.FarEnd`."""
    import sshd

    return sshd.FarEnd(request.param, backend, request.getfixturevalue(SSH_SERVERS[request.param]))


@pytest.fixture(params=SSH_SERVERS)
def mortal_far_end(request: pytest.FixtureRequest, backend: str, make_sshd: Any, make_ssh_server: Any) -> Any:
    """The same with servers of the test's own, which may go down and come back."""
    import sshd

    return sshd.FarEnd(request.param, backend, make_ssh_server() if request.param == "embedded" else make_sshd())


@pytest.fixture
def over_ssh(tmp_path: Path, spawner_thread: None) -> Iterator[Callable[..., Any]]:
    """Makes tunnels over SSH, ``over_ssh(url)``, whose target the test plays itself; see :class:`sshd.OverSSH`."""
    import sshd

    numbers = itertools.count()

    def make(url: Any, **options: Any) -> sshd.OverSSH:
        folder = tmp_path / f"over-{next(numbers)}"
        folder.mkdir()
        return sshd.OverSSH(url, folder, **options)

    yield from makes(make)


# Servers of Debian that real programs and drivers speak to; see postgres.py. They run for a whole session.


@pytest.fixture(scope="session")
def database(spawner_thread: None) -> Iterator[Any]:
    """A PostgreSQL, with one empty database."""
    import postgres

    yield from _served("postgresql", postgres.POSTGRES, postgres.Postgres)


@pytest.fixture(scope="session")
def redis_server(spawner_thread: None) -> Iterator[Any]:
    """A Redis, which holds what earlier tests have left."""
    import postgres

    yield from _served("redis-server", postgres.REDIS, postgres.Redis)


@pytest.fixture(scope="session")
def web_server(spawner_thread: None, certificates: Certificates) -> Iterator[Any]:
    """An nginx with one page."""
    import postgres

    yield from _served("nginx-light", postgres.NGINX, postgres.Nginx, certificates)


@pytest.fixture(scope="session")
def git_server(spawner_thread: None) -> Iterator[Any]:
    """A daemon of git with one repository."""
    import postgres

    yield from _served("git", postgres.GIT, postgres.GitDaemon)


def _served(package: str, program: object, make: Callable[..., Any], *arguments: object) -> Iterator[Any]:
    if program is None:
        pytest.skip(f"{package} is not installed")
    server = make(*arguments)
    yield server
    server.stop()


# I2P. All real routers start with the first test that needs one: what is slow with them happens while others run.


def pytest_configure(config: pytest.Config) -> None:
    """Give each of the processes that run tests side by side a network of its own, where the system allows that.

    The system gives a port that one test has closed to a test in another process, and whatever still tries to reach the
    first one (a client that reconnects) then reaches the other.
    """
    if hasattr(config, "workerinput"):  # one of those processes, and not what a test in it has started
        import namespace

        with contextlib.suppress(OSError):
            namespace.isolate()
        # The first one gets the tests with real routers. On a machine that is slow, these find no way to each other for
        # minutes if all the others take their time.
        if config.workerinput["workerid"] != "gw0":
            os.nice(5)


@pytest.hookimpl(hookwrapper=True)
def pytest_collection() -> Iterator[None]:
    """Keep the garbage collector away from the tests themselves: half a million objects, and none of them garbage."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


LONG = tuple(f"tests/{name}" for name in ("test_", "foreign/", "promises/", "cli/", "spawning/", "torture/"))


def _is_met_elsewhere(item: pytest.Item) -> bool:
    """Return whether a test has ssh at the embedded server, which tests/testing/test_sshserver.py does for all."""
    given = item.callspec.params if hasattr(item, "callspec") else {}
    ends = (given.get("far_end"), given.get("mortal_far_end"), given.get("far"))
    return given.get("backend") == "openssh" and "embedded" in ends


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests: if they run side by side, the longest come first, which are those with real I2P routers.

    What runs beside all tests is looked at in the end.
    """
    import i2p_world

    items[:] = [item for item in items if not _is_met_elsewhere(item)]
    real = [item for item in items if i2p_world.wanted_by(item)]
    for item in real:
        assert i2p_world.is_real(item.nodeid), f"{item.nodeid}: its name must tell of real_router(s) or of i2pd"
        is_of_program = not i2p_world.wanted_by(item).isdisjoint(i2p_world.PROGRAMS)
        assert i2p_world.is_of_program(item.nodeid) == is_of_program, f"{item.nodeid}: its name must tell of a program"
        # before the test's own fixtures look what is there; a new list, because all cases of a function share theirs
        item.fixturenames = ["i2p_networks", *item.fixturenames]  # type: ignore[attr-defined]
    items.sort(key=lambda item: not i2p_world.wanted_by(item).isdisjoint(i2p_world.PROGRAMS))
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Then those that start programs: with a few long files at the end, processes would wait for the last one.
        items.sort(key=lambda item: not item.nodeid.startswith(LONG))
        items.sort(key=lambda item: i2p_world.is_of_program(item.nodeid) * 2 or item not in real)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a file run in one process, those with real I2P routers in one, too.

    Marks for ``--dist=loadgroup`` have no effect with pytest 9.2 and pytest-xdist 3.8.
    """
    if config.getvalue("dist") != "loadgroup":
        return None
    import i2p_world
    from xdist.scheduler import LoadScopeScheduling

    class InGroups(LoadScopeScheduling):  # type: ignore[misc]
        """The outcomes of programs come last, in the process that has started them; no other one waits for them."""

        starter: Any = None

        def _split_scope(self, nodeid: str) -> str:
            if i2p_world.is_of_program(nodeid):
                return "programs"
            return "i2pd" if i2p_world.is_real(nodeid) else nodeid.partition("::")[0]

        def _assign_work_unit(self, node: Any) -> None:
            if next(iter(self.workqueue)) == "i2pd":
                self.starter = node
            super()._assign_work_unit(node)

        def _reschedule(self, node: Any) -> None:
            is_others = self.starter in self.assigned_work and node is not self.starter
            if [*self.workqueue] != ["programs"] or not is_others:
                super()._reschedule(node)
            elif not node.shutting_down:
                node.shutdown()

    config.option.loadscopereorder = False
    return InGroups(config, log)


@pytest.fixture
def runtime_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with a short path, the only one for the control sockets of this process and of its children."""
    with tempfile.TemporaryDirectory(prefix="run-") as path:
        monkeypatch.setenv("RUNTIME_DIRECTORY", path)
        yield Path(path)


@pytest.fixture(scope="session")
def i2p_networks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The networks of real routers that the collected tests want; see :class:`i2p_world.Networks`."""
    import i2p_world

    wanted = {name for item in request.session.items for name in i2p_world.wanted_by(item)}
    if wanted:
        request.getfixturevalue("spawner_thread")
    with i2p_world.Networks(wanted, tmp_path_factory.mktemp) as networks:
        yield networks


@pytest.fixture(scope="session")
def i2p_routers(i2p_networks: Any) -> Any:
    """Two real routers, which no test may end; see :class:`i2p_world.Routers`."""
    import i2p_world

    return i2p_world.inside() or i2p_networks.world("i2p_routers")


@pytest.fixture(scope="session")
def i2p_hops(i2p_networks: Any) -> Any:
    """The same with tunnels of one hop."""
    return i2p_networks.world("i2p_hops")


@pytest.fixture(scope="session")
def i2p_restarts(i2p_networks: Any) -> Any:
    """The outcome of ``i2p_restarts.py``: a scenario → the seconds that it took, and what went wrong or nothing."""
    return i2p_networks.restarts("i2p_restarts")


@pytest.fixture(scope="session")
def chain_restarts(i2p_networks: Any) -> Any:
    """The outcome of ``chain_restarts.py``: a scenario → the seconds of each recovery, and its error or nothing."""
    return i2p_networks.restarts("chain_restarts")


@pytest.fixture(scope="session")
def i2p_peers(i2p_networks: Any) -> Any:
    """The outcome of ``i2p_peers.py``: a scenario → the seconds that it took, and what went wrong or nothing."""
    return i2p_networks.restarts("i2p_peers")


@pytest.fixture
def over_i2p() -> Iterator[Callable[..., Any]]:
    """Makes tunnels over I2P, ``over_i2p(world)``, whose target the test plays itself; see :class:`i2p_world.OverI2P`.

    ``serve`` and ``reach`` are options of the server and of the client alone; other options go to both.
    """
    import i2p_world

    yield from makes(
        lambda world, *, serve=(), reach=(), **both: i2p_world.OverI2P(world, dict(serve), dict(reach), both)
    )


@pytest.fixture
def i2p_double() -> Iterator[Any]:
    """Two embedded bridges that are like i2pd; see :class:`i2p_world.Double`."""
    import i2p_world

    with contextlib.closing(i2p_world.Double("i2pd")) as world:
        yield world


@pytest.fixture
def java_double() -> Iterator[Any]:
    """The same like the Java router, at which servers use ACCEPT."""
    import i2p_world

    with contextlib.closing(i2p_world.Double("java", accept="accept")) as world:
        yield world


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets times of I2P for the test, such as ``times(remembered=(0.0, 0.0))``; see :mod:`i2p_times`."""
    from i2p_times import set_times

    return functools.partial(set_times, monkeypatch)


I2P_WORLDS = {"double": "i2p_double", "java-double": "java_double", "i2pd": "i2p_routers"}


@pytest.fixture(params=I2P_WORLDS)
def i2p_world(request: pytest.FixtureRequest) -> Any:
    """Runs a test on embedded bridges and on real routers, which it must not end; see :class:`i2p_world.World`."""
    return request.getfixturevalue(I2P_WORLDS[request.param])


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Names of tests must be the same in every process: none has a key made just now, or an object's address, in it."""
    text = repr(val)
    return argname if len(text) > 55 or " at 0x" in text else None
