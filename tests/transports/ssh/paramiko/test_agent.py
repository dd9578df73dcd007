"""The client of the authentication agent, with ssh-agent and with agents that misbehave."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import WAIT, Thread, receive_all, receive_exactly
from ssh_agent import RealAgent
from ssh_keys import make

from relay.transports.ssh.config.identities import key_type
from relay.transports.ssh.paramiko import agent as module
from relay.transports.ssh.paramiko.agent import Agent

pytestmark = pytest.mark.usefixtures("spawner_thread")

Fake = Callable[..., str]


@pytest.fixture
def real(tmp_path: Path) -> Iterator[RealAgent]:
    with RealAgent(tmp_path / "agent") as agent:
        yield agent


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    """``fake(answers…)``: an agent's path that gives these answers, in this order, and then waits."""
    path = str(tmp_path / "fake")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        threads: list[Thread] = []

        def serve(answers: tuple[bytes | None, ...]) -> None:
            with listening.accept()[0] as client:
                client.settimeout(WAIT)
                for answer in answers:
                    receive_exactly(client, struct.unpack(">I", receive_exactly(client, 4))[0])
                    if answer is None:
                        return
                    client.sendall(answer)
                receive_all(client)

        def make_agent(*answers: bytes | None) -> str:
            threads.append(Thread(serve, answers))
            return path

        yield make_agent
        for thread in threads:
            thread.result()


def packed(*parts: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def keys(*pairs: bytes) -> bytes:
    return packed(b"\x0c" + struct.pack(">I", len(pairs) // 2) + packed(*pairs))


@pytest.mark.parametrize(("flags", "algorithm"), [(2, "rsa-sha2-256"), (4, "rsa-sha2-512")])
def test_a_signature(real: RealAgent, tmp_path: Path, flags: int, algorithm: str) -> None:
    real.add(make(tmp_path / "rsa", "rsa"))
    agent = Agent(real.path)
    (blob,) = agent.keys
    assert key_type(agent.sign(blob, b"data", flags)) == algorithm
    real.remove_all()
    with pytest.raises(OSError, match="the agent has rejected the request"):
        agent.sign(blob, b"data", flags)
    agent.close()


@pytest.mark.parametrize(
    "answer",
    [
        struct.pack(">I", 0),
        struct.pack(">I", 0xFFFFFFFF),
        packed(b"\x05"),
        packed(b"\x0c"),
        packed(b"\x0c\xff\xff\xff\xff"),
        packed(b"\x0c\0\0\0\x01"),
        packed(b"\x0c\0\0\0\x01\0\0\0\xff"),
        None,
    ],
)
def test_answers_that_make_no_sense(fake: Fake, answer: bytes | None) -> None:
    with pytest.raises(OSError, match="is malformed|has rejected|has ended"):
        Agent(fake(answer))


def test_a_signature_that_makes_no_sense(fake: Fake) -> None:
    agent = Agent(fake(keys(b"key", b"comment"), packed(b"\x0e\0\0\0\xff")))
    assert agent.keys == {b"key": "comment"}
    with pytest.raises(OSError, match="is malformed"):
        agent.sign(b"key", b"data", 0)
    agent.close()


def test_a_comment_may_be_anything(fake: Fake) -> None:
    agent = Agent(fake(keys(b"key", b"\xff\n")))
    assert agent.keys == {b"key": "\ufffd\n"}
    agent.close()


def test_an_agent_that_does_not_answer(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_TIME", 0.05)
    with pytest.raises(OSError, match="timed out"):
        Agent(fake())


def test_closing_wakes_who_waits_for_a_signature(fake: Fake) -> None:
    agent = Agent(fake(keys(b"key", b"")))
    asked = threading.Event()

    def sign() -> Any:
        asked.set()
        return agent.sign(b"key", b"data", 0)

    thread = Thread(sign)
    asked.wait(WAIT)
    agent.close()
    with pytest.raises(OSError, match="has ended|Bad file|Broken pipe|not connected"):
        thread.result()
