"""``relay.transports.i2p.access``: who is let in, also while the files change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers import Thread

from relay.access.access_list import AccessList
from relay.addresses.destinations import Peer, PrivateKey
from relay.transports.i2p.access import refusal

ANN, BOB, EVE = (PrivateKey.generate() for _ in range(3))


def let_in(access):
    """Which of the three are."""
    return {key for key in (ANN, BOB, EVE) if refusal("web", access, Peer(key.destination, 7)) is None}


@pytest.fixture
def write(tmp_path):
    """Replaces a file as a whole, ``write(*lines)``; each has another time than the one before."""
    path = tmp_path / "list"
    count = 0

    def write(*lines):
        nonlocal count
        count += 1
        new = tmp_path / "new"
        new.write_text("".join(f"{line}\n" for line in lines))
        os.utime(new, (count, count))
        os.replace(new, path)
        return path

    return write


@pytest.mark.parametrize(
    ("allow", "deny", "who"),
    [
        (None, None, {ANN, BOB, EVE}),
        (None, (), {ANN, BOB, EVE}),
        ((), None, set()),
        ([ANN.destination], None, {ANN}),
        (ANN.b32, None, {ANN}),
        ((ANN.b32.upper(), f" {BOB.destination.rstrip('=')} "), None, {ANN, BOB}),
        (None, EVE.b32, {ANN, BOB}),
        (None, [EVE.destination, BOB.b32], {ANN}),
        ([ANN.b32, BOB.b32], [BOB.destination], {ANN}),
        ([ANN.b32], [ANN.b32], set()),
    ],
    ids=map(str, range(10)),
)
def test_who_is_let_in(allow, deny, who):
    assert let_in(AccessList(allow, deny)) == who


def test_the_reason_says_who_and_why():
    access = AccessList([ANN.b32], [EVE.b32])
    assert refusal("web", access, EVE.destination) == f"{EVE.b32} is denied"
    assert refusal("web", access, BOB.destination) == f"{BOB.b32} is not allowed"
    assert refusal("web", access, "nonsense") == refusal("web", access, "") == "the peer has no valid destination"


def test_destinations_may_be_in_files(write):
    path = write("# friends", "", ANN.b32, f"  {BOB.destination}  # Bob", "\t#", f"#{EVE.b32}")
    for entry in (path, str(path), [path], [str(path)]):
        assert let_in(AccessList(entry)) == {ANN, BOB}
        assert let_in(AccessList(None, entry)) == {EVE}
    assert let_in(AccessList([path, EVE.b32])) == {ANN, BOB, EVE}


def test_an_empty_file_allows_nobody(write):
    assert let_in(AccessList(write())) == set()


def test_a_file_is_read_again_when_it_has_changed(write, tmp_path):
    access = AccessList(write(ANN.b32), tmp_path / write(EVE.b32).name)
    write(ANN.b32, BOB.b32)
    assert let_in(access) == set()  # one file is both
    allow, deny = AccessList(write(ANN.b32)), AccessList(None, write(ANN.b32))
    for lines, who in ([BOB.b32], {BOB}), ([BOB.b32, EVE.b32], {BOB, EVE}), ([], set()):
        write(*lines)
        assert let_in(allow) == who
        assert let_in(deny) == {ANN, BOB, EVE} - who


@pytest.mark.parametrize("change", ["time", "size", "file"])
def test_any_difference_is_a_change(tmp_path, change):
    path = tmp_path / "list"
    path.write_text(f"{ANN.b32}\n")
    os.utime(path, ns=(5, 5))
    access = AccessList(path)
    assert let_in(access) == {ANN}
    (tmp_path / "new").write_text(f"{BOB.b32}\n" + "\n" * (change == "size"))
    if change == "file":
        os.replace(tmp_path / "new", path)
    else:
        path.write_text((tmp_path / "new").read_text())
    os.utime(path, ns=(5, 5) if change != "time" else (5, 6))
    assert let_in(access) == {BOB}


def test_a_file_that_has_not_changed_is_not_read_again(write, monkeypatch):
    access = AccessList(write(ANN.b32))

    def fail(path):
        raise AssertionError("it was read")

    monkeypatch.setattr("relay.access.rule_file.open_regular", fail)
    assert let_in(access) == {ANN}
    write(BOB.b32)
    with pytest.raises(AssertionError):
        let_in(access)


def test_one_that_makes_no_sense_is_not_read_again_either(write, monkeypatch):
    access = AccessList(write(ANN.b32))
    write("nonsense")
    assert let_in(access) == {ANN}
    monkeypatch.setattr("relay.access.rule_file.open_regular", None)
    assert let_in(access) == {ANN}


def test_a_file_that_is_gone_counts_as_it_was_and_that_is_said_once(write, caplog):
    path = write(ANN.b32)
    access = AccessList(path)
    for _ in range(2):
        path.unlink()
        assert let_in(access) == let_in(access) == {ANN}
        write(ANN.b32)
        assert let_in(access) == {ANN}
    texts = [record.getMessage() for record in caplog.records]
    assert texts == [f"web: {path}: No such file or directory; the previous list stays in force"] * 2


def test_one_that_cannot_be_read_any_more_counts_as_it_was(write, caplog):
    path = write(ANN.b32)
    access = AccessList(path)
    path.unlink()
    path.mkdir()
    assert let_in(access) == {ANN}
    assert [record.getMessage() for record in caplog.records] == [
        f"web: {path}: not a regular file; the previous list stays in force"
    ]
    path.rmdir()
    write(BOB.b32)
    assert let_in(access) == {BOB}


def test_one_that_makes_no_sense_any_more_counts_as_it_was(write, caplog):
    path = write(ANN.b32)
    access = AccessList(path)
    write(ANN.b32, BOB.b32[1:])
    assert let_in(access) == let_in(access) == {ANN}
    (record,) = caplog.records
    assert record.getMessage().startswith(f"web: {path}, line 2: before .b32.i2p stand 51 characters")
    assert record.getMessage().endswith("; the previous list stays in force")
    write(BOB.b32)
    assert let_in(access) == {BOB}
    write("nonsense")
    assert let_in(access) == {BOB}
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("example.i2p", "list, line 2: a name may be reassigned to another destination; use its .b32.i2p address"),
        ("nonsense", "list, line 2: the kind is missing; write user:nonsense, login:nonsense"),
        (ANN.b32[1:], "list, line 2: before .b32.i2p stand 51"),
        pytest.param(ANN.base64, "list, line 2: .* may be a private key", id="private key"),
        ("\xff\xfe", "list, line 2: the kind is missing"),
        ("/etc/hosts", "list, line 2: that is no rule; write KIND:VALUE"),
    ],
)
def test_a_file_that_is_wrong_from_the_beginning_is_an_error(write, line, problem):
    path = write("# a comment", line)
    with pytest.raises(ValueError, match=problem) as raised:
        AccessList([path])
    assert ANN.base64[600:610] not in str(raised.value)


@pytest.mark.parametrize("argument", ["allow", "deny"])
@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (
            "example.i2p",
            "'example.i2p' is neither a rule nor a file: a name may be reassigned .* .b32.i2p address",
        ),
        ("none.txt", "'none.txt' is neither a rule nor a file: there is no file .*/none.txt; correct the path"),
        ("", "'' is neither"),
        pytest.param(ANN.destination[:-1] + "!", "…' is neither .* I2P's base64", id="broken base64"),
        ("a" * 56 + ".b32.i2p", "checksum"),
        ("n\0ul", "is neither"),
        (Path("none.txt"), "none.txt: No such file or directory; expected a file of rules"),
        (Path("."), "not a regular file"),
        (".", "not a regular file"),
    ],
)
def test_an_entry_that_is_nothing_is_an_error(tmp_path, monkeypatch, argument, entry, problem):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=problem) as raised:
        AccessList(**{argument: [ANN.b32, entry]})
    if isinstance(entry, str) and entry != ".":
        assert str(raised.value).startswith(f"{argument}: ")


def test_the_address_of_an_encrypted_lease_set_cannot_be_compared():
    """Those have 56 characters; this one is of the key of zeros."""
    with pytest.raises(ValueError, match="does not identify a peer; use the address of 52"):
        AccessList(["vvjacaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.b32.i2p"])


@pytest.mark.parametrize("entry", [b"bytes", 7, None])
def test_an_entry_of_another_type_is_an_error(entry):
    with pytest.raises(TypeError, match="allow: expected a rule"):
        AccessList([entry])


def test_a_path_means_the_same_wherever_the_program_goes(write, tmp_path, monkeypatch):
    write(ANN.b32)
    monkeypatch.chdir(tmp_path)
    access = AccessList("list")
    monkeypatch.chdir("/")
    write(BOB.b32)
    assert let_in(access) == {BOB}
    monkeypatch.setenv("HOME", str(tmp_path))
    assert let_in(AccessList("~/list")) == {BOB}


def test_a_file_may_have_the_name_of_a_host(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("friends.i2p").write_text(ANN.b32)
    assert let_in(AccessList("friends.i2p")) == {ANN}


def test_many_may_ask_at_once_while_it_changes(write):
    access = AccessList(write(ANN.b32))

    def ask():
        for _ in range(200):
            who = let_in(access)
            assert who in ({ANN}, {ANN, BOB})

    threads = [Thread(ask) for _ in range(4)]
    while any(thread.is_alive() for thread in threads):
        write(ANN.b32, BOB.b32)
        write(ANN.b32)
    for thread in threads:
        thread.result()
