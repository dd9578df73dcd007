"""One schedule through each relay, a small one under faults, and a round of crashes; ``make torture`` runs many."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from helpers import wait_until

from relay.process import start

from . import soak
from .__main__ import Result, crash, run
from .crashes import FaultCounts, world
from .faulty import FAULTY
from .model import Direction, ModelError, pattern
from .programs import FaultError
from .relays import RELAYS
from .resumed import RESUMED

ROOT = Path(__file__).parents[2]
SSHD, DROPBEAR = (
    shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin") for name in ("sshd", "dropbear")
)


# Real routers crash now and then where their SAM streams are cut, so that only `make torture` has them.
@pytest.mark.parametrize("name", [*RELAYS, *(name for name in RESUMED if name != "resume-i2pd")])
def test_no_byte_is_lost_or_mixed_up(name):
    result = Result()
    run(name, 20, 30, 400, result, lambda text: None)
    assert result.connections == 30


@pytest.mark.parametrize("name", FAULTY)
def test_faults_of_system_calls_lose_no_byte(name):
    result = Result()
    run(name, 20, 60, 800, result, lambda text: None)
    assert sum(count for kind, count in result.faults.items() if kind != "calls") > 0


@pytest.mark.skipif(not SSHD, reason="needs sshd")
def test_processes_that_are_killed_leave_nothing_and_all_recovers():
    counts = FaultCounts()
    crash(29646, 2, Result(), counts, lambda text: None)
    assert counts.counts == {"ssh killed": 1, "worker killed": 1}


@pytest.mark.skipif(os.geteuid() != 0 or not (SSHD and DROPBEAR), reason="needs root, sshd and dropbear")
def test_a_network_that_fails_loses_no_byte():
    options = ["--relays", "network", "--minutes", "0.01", "--seed", "3", "--faults", "4"]
    environment = {**os.environ, "PYTHONPATH": "tests/support"}
    command = [sys.executable, "-m", "tests.torture", *options]  # a program, for it goes to another network
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 events" in done.stdout


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("hosts/openssh", "[127.0.0.1]:22 ssh-ed25519 AAAA", "known_hosts of openssh"),
        ("keys/visitor.dat", "half a key", "visitor.dat"),
        ("access.log", '{"id": 1}\n{"id"', "access.log: line 2"),
    ],
)
def test_a_file_that_is_not_whole_is_seen(name, text, problem):
    with world() as made:
        made.check_files()
        (made.folder / name).write_text(text)
        with pytest.raises(FaultError, match=problem):
            made.check_files()


def test_a_process_that_is_left_is_seen():
    with world() as made, start(["sleep", "60"], env=made.environment()) as left:
        wait_until(lambda: left.pid in made.strays())
        left.kill()


@pytest.mark.skipif(not SSHD, reason="needs sshd")
def test_a_soak_takes_samples_of_each_tunnel():
    with tempfile.TemporaryDirectory() as folder, soak.Soak(Path(folder), dict.fromkeys(soak.THREADS, 1)) as soaked:
        wait_until(lambda: all(line["done"] for line in soaked.sample().clients.values()))
        sample = soaked.sample()
        soaked.close()
    assert sample.failed == 0 and sample.connections > 0 and sample.objects > 0


def test_what_grows_is_seen():
    assert abs(soak.growth([100, 101, 99, 100, 101, 99])) < 0.02
    assert soak.growth([100, 102, 104, 106]) > 0.05


# -- the model would see it ------------------------------------------------------------------------------------------


def direction(sent=100):
    made = Direction(3, "connection 1, up")
    made.on_sent(sent)
    return made


def test_the_right_bytes_are_right():
    made = direction()
    made.on_received(bytes(pattern(3, 0, 60)))
    made.on_received(bytes(pattern(3, 60, 40)))
    made.is_ended = True
    made.on_eof()
    assert made.is_over


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (bytes(pattern(3, 1, 50)), "wrong bytes"),  # one is lost
        (bytes(pattern(3, 0, 1)) + bytes(pattern(3, 0, 49)), "wrong bytes"),  # one is doubled
        (bytes(pattern(5, 0, 50)), "wrong bytes"),  # those of another connection
        (bytes(pattern(3, 0, 101)), "1 bytes more than the 100"),
    ],
)
def test_wrong_bytes_are_seen(data, problem):
    with pytest.raises(ModelError, match=problem):
        direction().on_received(data)


def test_a_cut_that_looks_whole_is_seen():
    made = direction()
    made.on_received(bytes(pattern(3, 0, 60)))
    with pytest.raises(ModelError, match="the sender has not ended"):
        made.on_eof()
    made.is_ended = True
    with pytest.raises(ModelError, match="60 of 100 bytes: a cut that looks whole"):
        made.on_eof()


def test_a_reset_needs_a_cause():
    made = direction()
    with pytest.raises(ModelError, match="without a cause"):
        made.on_reset()
    made.is_excused = True
    made.on_reset()
    assert made.is_over
