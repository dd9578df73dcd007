"""known_hosts files: reading them, whatever they hold, and writing one line."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
import time
from pathlib import Path

import pytest
from helpers import PROMPT, WAIT, Thread
from ssh_keys import blob as key
from ssh_keys import line

from relay.process import DEVNULL, PIPE, start
from relay.transports.ssh.config import known_hosts
from relay.transports.ssh.config.known_hosts import Entry, append_entry, find, fingerprint

pytestmark = pytest.mark.usefixtures("spawner_thread")


def found(path: Path, name: str) -> list[Entry]:
    return find([str(path)], name)


@pytest.mark.parametrize(
    ("hosts", "name", "about"),
    [
        ("db.internal", "db.internal", True),
        ("db.internal", "DB.Internal", True),
        ("DB.internal", "db.internal", True),
        ("db.internal", "xdb.internal", False),
        ("db.internal", "dbxinternal", False),
        ("a,db.internal,b", "db.internal", True),
        ("[db.internal]:2222", "[db.internal]:2222", True),
        ("[db.internal]:2222", "db.internal", False),
        ("db.internal", "[db.internal]:2222", False),
        ("*.internal", "db.internal", True),
        ("*.internal", "internal", False),
        ("d?.internal", "db.internal", True),
        ("d?.internal", "dbb.internal", False),
        ("*,!db.internal", "db.internal", False),
        ("!db.internal,*", "db.internal", False),
        ("*,!db.internal", "web.internal", True),
        ("!db.internal", "web.internal", False),
        ("[*]:2222", "[db.internal]:2222", True),
        ("::1", "::1", True),
        ("*a*b*c*", "xxaxxbxxcxx", True),
        ("*a*b*c*", "xxaxxcxxbxx", False),
    ],
)
def test_which_lines_are_about_a_host(tmp_path: Path, hosts: str, name: str, about: bool) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(line(hosts) + "\n")
    assert bool(found(file, name)) is about


def test_a_pattern_of_many_stars_is_no_trap(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(line("*a" * 200 + "b") + "\n")
    begun = time.monotonic()
    assert not found(file, "a" * 250)
    assert time.monotonic() - begun < PROMPT


def test_a_line_says_where_it_is_and_what_it_has(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"# mine\n\n{line('other')}\n@revoked {line('host', key(1))} a comment\n{line('host')}\n")
    assert found(file, "host") == [Entry(str(file), 4, "@revoked", key(1)), Entry(str(file), 5, "", key())]
    assert str(found(file, "host")[0]) == f"{file} line 4"
    assert found(file, "host")[1].type == "ssh-ed25519"


@pytest.mark.parametrize(
    "garbage",
    [
        b"host ssh-ed25519 \xff\xfe\xfd",
        b"host ssh-ed25519 AAAA",
        b"host ssh-ed25519",
        b"host",
        b"@",
        b"@unknown host ssh-ed25519 AAAAC3NzaC1lZDI1NTE5",
        b"|1|x|y ssh-ed25519 AAAA",
        b"|1|x ssh-ed25519 AAAA",
        b"|2|AAAA|AAAA ssh-ed25519 AAAA",
        b"host 1024 35 12345678901234567890",
        b"\x00" * 1000,
        b"\xff" * 1000,
        b"host ssh-ed25519 " + b"A" * 300_000,
        b"," * 1000 + b" ssh-ed25519 AAAA",
    ],
)
def test_garbage_lines_do_no_harm(tmp_path: Path, garbage: bytes) -> None:
    file = tmp_path / "known_hosts"
    file.write_bytes(garbage + b"\n" + line("host").encode() + b"\n" + garbage)
    assert found(file, "host") == [Entry(str(file), 2, "", key())]


def test_the_rest_of_a_line_that_is_too_long_is_no_line(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text("x" * known_hosts.LONGEST_LINE + line("host") + "\n" + line("host", key(1)) + "\n")
    assert found(file, "host") == [Entry(str(file), 2, "", key(1))]


def test_the_type_that_is_written_must_be_the_keys_own(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(line("host").replace("ssh-ed25519", "ssh-rsa", 1))
    assert not found(file, "host")


def test_files_that_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "good").write_text(line("host"))
    files = [str(tmp_path), str(tmp_path / "fifo"), str(tmp_path / "none"), "nul\0", os.devnull, str(tmp_path / "good")]
    assert [entry.blob for entry in find(files, "host")] == [key()]


def test_a_huge_file(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text((line("other") + "\n") * 50_000 + line("host") + "\n")
    assert [entry.line for entry in found(file, "host")] == [50_001]


def test_hashed_names_are_those_of_ssh_keygen(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"{line('db.internal')}\n{line('[db.internal]:2222', key(1))}\n")
    start(["ssh-keygen", "-q", "-H", "-f", str(file)], stderr=DEVNULL).wait(WAIT)
    assert "db.internal" not in file.read_text()
    assert [entry.blob for entry in found(file, "DB.internal")] == [key()]
    assert [entry.blob for entry in found(file, "[db.internal]:2222")] == [key(1)]
    assert not found(file, "web.internal")


def test_a_fingerprint_is_that_of_ssh_keygen(tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_text(line("").strip())
    child = start(["ssh-keygen", "-l", "-f", str(tmp_path / "key.pub")], stdout=PIPE)
    assert fingerprint(key()) in child.communicate(timeout=WAIT)[0].decode().split()


def test_a_new_file_and_directory_are_the_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_hosts, "home", lambda: str(tmp_path))
    file = tmp_path / ".ssh" / "known_hosts"
    old = os.umask(0)
    try:
        append_entry(str(file), "host", key())
    finally:
        os.umask(old)
    assert file.read_text() == line("host") + "\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("before", ["", "# mine\n", "# no newline"])
def test_exactly_one_line_is_appended(tmp_path: Path, before: str) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(before)
    file.chmod(0o644)
    append_entry(str(file), "[::1]:2222", key())
    append_entry(str(file), "[::1]:2222", key())
    assert file.read_text().splitlines() == [*before.splitlines(), line("[::1]:2222")]
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


def test_a_hashed_line_is_found_by_ssh_keygen(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    append_entry(str(file), "db.internal", key(), hashed=True)
    assert "db.internal" not in file.read_text() and found(file, "db.internal")
    assert start(["ssh-keygen", "-F", "db.internal", "-f", str(file)]).wait(WAIT) == 0


def test_many_writers_of_one_host_write_one_line(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    together = threading.Barrier(8)

    def write(number: int) -> None:
        together.wait(WAIT)
        append_entry(str(file), "shared", key())
        append_entry(str(file), f"host{number}", key())

    for thread in [Thread(write, number) for number in range(8)]:
        thread.result()
    assert sorted(file.read_text().splitlines()) == sorted(
        [line("shared"), *(line(f"host{number}") for number in range(8))]
    )


def test_another_program_that_keeps_the_lock_does_not_stop_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_hosts, "LOCK_WAIT", 0.1)
    file = tmp_path / "known_hosts"
    with file.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        append_entry(str(file), "host", key())
    assert found(file, "host")


def test_no_directory_is_made_but_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_hosts, "home", lambda: str(tmp_path / "home"))  # it is not there either
    for place in (tmp_path / "new", tmp_path / "home" / ".ssh", tmp_path / ".ssh"):
        with pytest.raises(FileNotFoundError):
            append_entry(str(place / "known_hosts"), "host", key())
    assert not list(tmp_path.iterdir())


def test_a_link_is_followed_if_its_user_has_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many keep their files elsewhere; a link of another user may lead anywhere."""
    file, link = tmp_path / "file", tmp_path / "known_hosts"
    link.symlink_to("file")
    append_entry(str(link), "host", key())
    assert file.read_text() == line("host") + "\n"
    if os.geteuid() == 0:
        os.chown(link, 4242, -1, follow_symlinks=False)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4242)
    with pytest.raises(PermissionError, match="a link of another user"):
        append_entry(str(link), "other", key())
    append_entry(str(file), "other", key())
    assert file.read_text() == line("host") + "\n" + line("other") + "\n"


def test_nowhere_to_write(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Not a directory|File exists|No such file"):
        append_entry(str(tmp_path / "a" / "b" / "known_hosts"), "host", key())
    append_entry(os.devnull, "host", key())
