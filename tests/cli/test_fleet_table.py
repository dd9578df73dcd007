"""The layout of the live table, from values to lines, without a terminal."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from relay.cli.fleet_table import Column, Content, lay_out

COLUMNS = (
    Column("tunnel", least=12, is_name=True),
    Column("state"),
    Column("from → to", least=20),
    Column("open", is_figure=True),
    Column("received", is_figure=True),
    Column("received/s", optional=True, is_figure=True),
)
WAY = "127.0.0.1:5432 → db.internal:5432 via ssh://me@bastion.example.org"
ROWS = [
    ["db", "up", WAY, "3", "1.2 MB", "12 kB"],
    ["web", "backing off", "127.0.0.1:8080 → 10.0.0.7:80", "0", "0 B", ""],
]


def content(rows=ROWS, **more):
    return Content(head=["2 of 2 tunnels listen"], columns=COLUMNS, rows=rows, foot=["3 open of 7 connections"], **more)


def texts(made, width=80, height=24):
    lines = [line.text for line in lay_out(made, width, height)]
    assert len(lines) <= height
    assert all(cell_len(line) <= width for line in lines), [line for line in lines if cell_len(line) > width]
    return lines


def test_where_there_is_room_all_of_it_is_shown():
    assert texts(content(), 130) == [
        "2 of 2 tunnels listen",
        f"tunnel  state        {'from → to':66}  open  received  received/s",
        f"db      up           {WAY:66}     3    1.2 MB       12 kB",
        f"web     backing off  {'127.0.0.1:8080 → 10.0.0.7:80':66}     0       0 B",
        "3 open of 7 connections",
    ]


@pytest.mark.parametrize("width", [80, 70, 60])
def test_the_way_gives_way_first(width):
    _, title, first, second, _ = texts(content(), width)
    assert title.split()[:2] == ["tunnel", "state"] and "open" in title and "received" in title
    assert first.startswith("db ") and " up " in first and "127.0.0.1:5432 → " in first and "…" in first
    assert "1.2 MB" in first and "  3 " in first
    assert second.startswith("web ") and "backing off" in second and "0 B" in second


def test_rates_are_left_out_before_the_way_is_too_short():
    assert "received/s" in texts(content(), 80)[1]
    assert "received/s" not in texts(content(), 60)[1]


def test_a_long_name_gives_way_after_the_way():
    rows = [["a-tunnel-with-a-very-long-name", "up", WAY, "3", "1.2 MB", ""]]
    assert "a-tunnel-with-a-very-long-name" in texts(content(rows), 90)[2]
    narrow = texts(content(rows), 64)[2]
    assert narrow.startswith("a-tunnel-with-a-very-long-name up") and " 127.0.0.1" in narrow and "1.2 MB" in narrow


def test_names_that_differ_at_their_ends_are_told_apart():
    rows = [[f"production-database-of-the-whole-{end}", "backing off", WAY, "3", "1.2 MB", ""] for end in ("eu", "us")]
    for line, end in zip(texts(content(rows), 60)[2:4], ("eu", "us"), strict=True):
        name = line.split()[0]
        assert name.startswith("production-da") and "…" in name and name.endswith(f"whole-{end}")
    names = [[f"日本語{end * 20}", "up", WAY, "3", "1.2 MB", ""] for end in ("東", "京")]
    assert [line.split()[0][-1] for line in texts(content(names), 60)[2:4]] == ["東", "京"]


@pytest.mark.parametrize("width", [1, 2, 10, 20, 30, 40, 50])
@pytest.mark.parametrize("height", [1, 2, 3, 5, 100])
def test_no_terminal_is_too_small(width, height):
    made = content(ROWS * 20, errors=["db: it failed " * 10] * 5, ended=["done after 3 s: a → b"] * 8)
    assert texts(made, width, height)


def test_what_does_not_fit_is_counted():
    rows = [[f"t{number}", "up", WAY, str(number), "0 B", ""] for number in range(50)]
    lines = texts(content(rows), 80, 22)
    assert len(lines) == 22
    shown = [line for line in lines if line.startswith("t") and not line.startswith("tunnel")]
    assert lines[-2] == f"and {50 - len(shown)} more"
    assert lines[-1] == "3 open of 7 connections"
    assert len(shown) == 18
    assert "more" not in "".join(texts(content(rows), 80, 53))


def test_errors_stand_below_the_table_and_do_not_widen_it():
    error = "busy: 127.0.0.1:8000: Address already in use; another program listens there, and this is a long line"
    rows = [["busy", "failed", "", "", "", ""], *ROWS]
    lines = texts(content(rows, errors=[error]))
    assert lines[2].split() == ["busy", "failed"]
    assert lines[5:7] == [
        "busy: 127.0.0.1:8000: Address already in use; another program listens there, and",
        "  this is a long line",
    ]
    assert lines[1:2] + lines[3:5] == texts(content())[1:4]


def test_of_many_errors_the_first_are_shown_and_the_rest_is_counted():
    lines = texts(content(errors=[f"t{number}: refused" for number in range(40)]))
    assert "t0: refused" in lines
    (rest,) = [line for line in lines if line.endswith("more errors")]
    shown = [line for line in lines if line.endswith("refused")]
    assert rest == f"and {40 - len(shown)} more errors"
    assert lines[2].startswith("db ") and lines[3].startswith("web ")


def test_the_last_ended_stand_below_and_give_way_to_rows():
    ended = [f"done after {number} s: a → b" for number in range(8)]
    lines = texts(content(ended=ended))
    assert lines[4] == "last ended" and lines[5] == ended[0]
    many = texts(content(ROWS * 20, ended=ended), 80, 22)
    assert len([line for line in many if line.startswith(("db", "web"))]) >= 10
    assert "last ended" in many


def test_what_comes_from_a_peer_moves_no_cursor():
    rows = [["db", "up", "a\x1b[2J\rb\u202ec → d", "1", "0 B", ""]]
    row = texts(content(rows, errors=["x\x1b]0;title\x07y"]))
    assert r"a\x1b[2J\rb\u202ec → d" in row[2]
    assert row[3] == r"x\x1b]0;title\x07y"


def test_wide_characters_take_two_columns():
    rows = [["日本語", "up", "日本" * 30, "1", "0 B", ""], ["db", "up", "x", "1", "0 B", ""]]
    lines = texts(content(rows), 80)
    assert cell_len(lines[2].rpartition("1  ")[0]) == cell_len(lines[3].rpartition("1  ")[0])
