"""What every test gets: a check for leaks after each, skips that are heard, and a few fixtures."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

pytest.register_assert_rewrite("helpers")

from helpers import Certificates, Relayed, Server, echo  # noqa: E402  (after the line above, which must come first)

from relay.testing import Leaks  # noqa: E402

CI = os.environ.get("CI") == "true"


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """No test leaves a descriptor (a socket, a pipe), a thread or a child process."""
    leaks = Leaks()
    yield
    left = leaks.left(timeout=5.0)
    assert not left, "left behind:\n  " + "\n  ".join(left)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """With ``CI=true`` a test that was skipped has failed."""
    report = (yield).get_result()  # type: ignore[misc]
    _fail_if_skipped(report)


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    """The same for a whole file."""
    report = (yield).get_result()  # type: ignore[misc]
    _fail_if_skipped(report)


def _fail_if_skipped(report: Any) -> None:
    if CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"with CI=true nothing may be skipped: {_reason(report)}"


def _reason(report: Any) -> str:
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say aloud what was not tested."""
    skipped = terminalreporter.getreports("skipped")
    if skipped:
        terminalreporter.section(f"{len(skipped)} NOT TESTED", yellow=True)
        for report in skipped:
            terminalreporter.write_line(f"{report.nodeid}: {_reason(report)}")


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
    servers: list[Server] = []

    def make(*args: Any, **options: Any) -> Server:
        servers.append(Server(*args, **options))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


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
    made: list[Relayed] = []

    def make(factory: Any = None, **options: Any) -> Relayed:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        tls = "tls" in (options.get("way_in"), options.get("way_out"))
        made.append(Relayed(factory, folder, request.getfixturevalue("certificates") if tls else None, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listening TCP socket on loopback, whose ``accept`` has a deadline."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
        listening.settimeout(10)
        yield listening
