"""Pipes: pooled, bounded, done without."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from helpers import closed

from relay.eventloop import pipes
from relay.eventloop.pipes import Pipe, PipePool


@pytest.fixture
def pool() -> Iterator[PipePool]:
    yield from closed(PipePool())
    assert PipePool._total == 0


def take(pool: PipePool) -> Pipe | None:
    return pool.idle.pop() if pool.idle or pool.make() is not None else None


def test_a_pipe_that_came_back_is_used_again(pool: PipePool) -> None:
    first = take(pool)
    assert first is not None
    assert first.size == pipes.SIZE
    pool.give(first)
    assert take(pool) is first
    pool.give(first)


def test_idle_pipes_are_few(pool: PipePool) -> None:
    taken = [pipe for _ in range(10) if (pipe := take(pool)) is not None]
    assert len(taken) == 10
    for pipe in taken:
        pool.give(pipe)
    assert len(pool.idle) == pipes._KEPT
    assert PipePool._total == pipes._KEPT * pipes.SIZE


def test_the_bound_holds_for_all_pools_of_the_process(pool: PipePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "_BOUND", 3 * pipes.SIZE)
    other = PipePool()
    taken = [take(pool), take(pool), take(other)]
    assert None not in taken
    assert take(pool) is None
    assert take(other) is None
    other.destroy(taken.pop())  # type: ignore[arg-type]
    last = take(pool)
    assert last is not None
    for pipe in (*taken, last):
        pool.destroy(pipe)  # type: ignore[arg-type]


def test_a_quota_that_is_used_up_means_no_pipe(pool: PipePool, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(os.listdir("/proc/self/fd"))

    def refuse(*args: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(pipes.fcntl, "fcntl", refuse)
    assert take(pool) is None
    monkeypatch.undo()
    assert set(os.listdir("/proc/self/fd")) == before


def test_no_descriptor_means_no_pipe(pool: PipePool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(flags: int) -> tuple[int, int]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pipe2", refuse)
    assert take(pool) is None


def test_a_system_without_large_pipes_copies(pool: PipePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "_SET_SIZE", None)
    assert take(pool) is None
