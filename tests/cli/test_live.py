"""The live table: its layout, and what a terminal shows; pyte plays the terminal."""

import contextlib
import io
import os
import re
import select
import signal
import socket
import sys
import termios
import threading
import time

import pyte
import pytest
from command_rig import Terminal
from helpers import WAIT, exchange
from rich.cells import cell_len
from rich.console import Console

from relay.cli.live import Column, Content, LiveTable, lay_out, live_table

COLUMNS = (Column("name"), Column("from → to", least=20), Column("live", is_figure=True))
WAY = "127.0.0.1:5432 → db.internal:5432 via ssh://me@bastion.example.org and a second bastion behind it, far away"


def resize(screen, width, height):
    """As xterm does it. pyte drops lines at the top, and leaves the cursor where it was."""
    x, y = screen.cursor.x, screen.cursor.y
    if height < screen.lines:
        gone = max(0, y - height + 1)
        if gone:
            screen.cursor_position()
            screen.delete_lines(gone)
        for line in range(height, screen.lines):
            screen.buffer.pop(line, None)
        screen.lines = height
        screen.cursor.y = y - gone
    screen.resize(height, width)
    screen.cursor.x = min(x, width - 1)


class Stream(io.StringIO):
    """A terminal of the test: what is written to it is drawn at once."""

    def __init__(self, width, height):
        super().__init__()
        self.screen = pyte.Screen(width, height)
        self.screen.set_mode(pyte.modes.LNM)  # a newline goes to the first column, as a tty driver has it
        self.feed = pyte.Stream(self.screen)
        self.written = ""

    def write(self, text):
        self.written += text
        self.feed.feed(text)
        return len(text)

    def isatty(self):
        return True

    def shown(self):
        return [line.rstrip() for line in self.screen.display if line.strip()]


class Rig:
    """A table on such a terminal."""

    def __init__(self, monkeypatch, width=80, height=24, rows=3):
        self.stream = Stream(width, height)
        monkeypatch.setattr(sys, "stderr", self.stream)
        self.console = Console(
            file=io.StringIO(), force_terminal=True, width=width, height=height, _environ={"TERM": "xterm"}
        )
        self.rows = rows
        self.table = LiveTable(self.console, self.view)

    def view(self):
        rows = [[f"t{number}", WAY, str(number)] for number in range(self.rows)]
        return Content([f"{self.rows} tunnels"], COLUMNS, rows, foot=["the sum"])

    def resize(self, width, height):
        resize(self.stream.screen, width, height)
        self.console.size = (width, height)


def test_it_stays_below_what_is_printed(monkeypatch):
    rig = Rig(monkeypatch)
    with rig.table as table:
        for number in range(30):
            print(f"line {number}", file=sys.stderr)
            table.refresh()
        shown = rig.stream.shown()
        assert shown[-6:][0] == "3 tunnels" and shown[-1] == "the sum"
        assert shown[:-6] == [f"line {number}" for number in range(30 - len(shown) + 6, 30)]
    assert rig.stream.shown()[-1] == "line 29"
    assert "\x1b[?25l" in rig.stream.written and rig.stream.written.endswith("\x1b[?25h")


def test_what_becomes_shorter_leaves_nothing(monkeypatch):
    rig = Rig(monkeypatch, rows=10)
    with rig.table as table:
        rig.rows = 1
        table.refresh()
        assert len(rig.stream.shown()) == 4
        assert "t1" not in "".join(rig.stream.shown())


@pytest.mark.parametrize(
    "sizes", [[(120, 40), (80, 24)], [(80, 24), (120, 40)], [(120, 24), (60, 24), (40, 10), (100, 30)]]
)
def test_a_terminal_of_another_size_keeps_no_remains(monkeypatch, sizes):
    rig = Rig(monkeypatch, *sizes[0], rows=40)
    with rig.table as table:
        for size in sizes[1:]:
            rig.resize(*size)
            table.refresh()
        width = sizes[-1][0]
        shown = rig.stream.shown()
        assert shown.count("40 tunnels") == 1 and shown.count("the sum") == 1
        assert sum(line.startswith("name") for line in shown) == 1
        rows = [line for line in shown if re.match(r"t\d", line)]
        assert len(rows) == len(set(rows)) and all(re.search(r"(…|away) +\d+$", row) for row in rows)
        assert f"and {40 - len(rows)} more" in shown or len(rows) == 40
        assert all(len(line) <= width for line in shown)


def test_lines_that_a_narrower_terminal_breaks_are_erased(monkeypatch):
    # As a terminal has it that breaks its lines again; and one that was resized while it was drawn upon.
    rig = Rig(monkeypatch, 120, 40, rows=5)
    rig.stream = Stream(60, 40)
    monkeypatch.setattr(sys, "stderr", rig.stream)
    with rig.table as table:
        rig.console.size = (60, 40)
        table.refresh()
        shown = rig.stream.shown()
        assert shown.count("5 tunnels") == 1 and len(shown) == 8


def test_each_picture_is_one_write_between_the_marks(monkeypatch):
    rig = Rig(monkeypatch)
    with rig.table as table:
        before = len(rig.stream.written)
        table.refresh()
        text = rig.stream.written[before:]
        assert text.startswith("\x1b[?2026h\r\x1b[5A\x1b[J") and text.endswith("\x1b[?2026l")


def test_many_threads_print_whole_lines(monkeypatch):
    rig = Rig(monkeypatch, 80, 300)

    def work(name):
        for number in range(50):
            print(name, number, file=sys.stderr)
            rig.table.refresh()

    with rig.table:
        threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
        shown = rig.stream.shown()
    assert sorted(shown[:-6]) == sorted(f"{name} {number}" for name in "abcd" for number in range(50))
    assert shown[-6] == "3 tunnels"


def test_a_terminal_that_goes_away_ends_nothing(monkeypatch):
    rig = Rig(monkeypatch)
    with rig.table as table:
        monkeypatch.setattr(rig.stream, "write", lambda text: (_ for _ in ()).throw(OSError(5, "gone")))
        table.refresh()
        print("more", file=sys.stderr)


def test_where_there_can_be_no_table_one_line_says_why(monkeypatch, caplog):
    caplog.set_level("INFO", "relay.cli")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert live_table(lambda: Content([], (), [])) is None
    monkeypatch.setattr(sys, "stderr", Stream(80, 24))
    monkeypatch.setenv("TERM", "dumb")
    assert live_table(lambda: Content([], (), [])) is None
    assert caplog.messages == [
        "--watch: there is no live table on standard error: it is no terminal",
        "--watch: there is no live table on standard error: TERM says that it cannot move its cursor",
    ]


# The command, on a real terminal device.


class Screen(Terminal):
    """A terminal device, and pyte behind it."""

    def __init__(self, stack, width, height):
        super().__init__(stack)
        self.screen = pyte.Screen(width, height)
        self._bytes = pyte.ByteStream(self.screen)
        self._unseen = b""
        self.resize(width, height)

    def resize(self, width, height):
        termios.tcsetwinsize(self.its, (height, width))
        resize(self.screen, width, height)

    def wait_for_picture(self, is_there):
        """Read until a whole picture is right; returns its lines."""
        deadline = time.monotonic() + 30
        while True:
            picture, mark, rest = self._unseen.partition(b"\x1b[?2026l")
            if mark:
                self._unseen = rest
                self._bytes.feed(picture + mark)
                lines = [line.rstrip() for line in self.screen.display]
                if is_there(lines):
                    return [line for line in lines if line]
                continue
            ready, _, _ = select.select([self.ours], [], [], max(0, deadline - time.monotonic()))
            assert ready, "\n".join(self.screen.display)
            self._unseen += os.read(self.ours, 1 << 16)


@pytest.fixture
def open_screen():
    with contextlib.ExitStack() as stack:
        yield lambda width, height: Screen(stack, width, height)


def environment():
    """The size is the screen's, whatever the shell or the process that runs the tests says of its own."""
    return {**{name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}, "TERM": "xterm"}


def test_fifty_tunnels_one_failed_and_a_terminal_that_shrinks(start, open_screen, listener, tmp_path):
    target = "{}:{}".format(*listener.getsockname())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        text = f'[tunnels.taken]\nlisten = "127.0.0.1:{taken.getsockname()[1]}"\ntarget = "{target}"\n'
        text += "".join(f'[tunnels.t{number}]\nlisten = ":0"\ntarget = "{target}"\n' for number in range(49))
        path = tmp_path / "relay.toml"
        path.write_text(text)
        path.chmod(0o600)
        screen = open_screen(120, 40)
        command = start(str(path), "--watch", command="up", stderr=screen.its, env=environment())
        ports = {}
        while len(ports) < 49:
            name, where = re.match(r"(\w+): listening on \S+:(\d+)", command.process.stdout.readline()).groups()
            ports[name] = int(where)
        screen.wait_for_picture(lambda lines: "49 of 50 tunnels listen" in lines)
        configured = re.compile(rf"taken +failed +:{taken.getsockname()[1]} → {target}$")
        shown = screen.wait_for_picture(lambda lines: any(configured.match(line) for line in lines))
        assert any(line.startswith("and ") and line.endswith(" more") for line in shown)
        with socket.create_connection(("127.0.0.1", ports["t40"]), timeout=WAIT) as client:
            far, _ = listener.accept()
            with far:
                far.settimeout(WAIT)
                exchange(client, far, b"x" * 1234)
                busy = re.compile(r"t40 +listening +:.* 1 +1 +1\.2 kB +1\.2 kB +0\b")
                screen.wait_for_picture(lambda lines: any(busy.match(line) for line in lines))
                screen.resize(80, 24)
                busy = re.compile(r"t40 +listening +:\d+ → 127\.0\.0\.1:\d+ +1 +1 +1\.2 kB +0\b")  # the target stays
                shown = screen.wait_for_picture(
                    lambda lines: lines[-3:] and any(busy.match(line) for line in lines) and _is_whole(lines, 80)
                )
                assert any(re.match(r"taken +failed", line) for line in shown)
                assert any(line.startswith("taken: 127.0.0.1:") and "already in use" in line for line in shown)
                command.process.send_signal(signal.SIGTERM)
                screen.wait_for_picture(
                    lambda lines: any(line.startswith("closing; 1 open, 30 s to finish;") for line in lines)
                )
                command.process.send_signal(signal.SIGTERM)
        assert command.process.wait(WAIT) == 0


def _is_whole(lines, width):
    """Return whether there is one table, and nothing of another."""
    heads = [number for number, line in enumerate(lines) if line.startswith("49 of 50 tunnels")]
    titles = [number for number, line in enumerate(lines) if line.startswith("tunnel ")]
    feet = [number for number, line in enumerate(lines) if " open of " in line]
    return len(heads) == len(titles) == len(feet) == 1 and heads[0] + 1 == titles[0] < feet[0]


def test_two_hundred_connections_of_one_tunnel(start, open_screen, listener):
    target = "{}:{}".format(*listener.getsockname())
    screen = open_screen(80, 24)
    command = start(":0", target, "--watch", stderr=screen.its, env=environment())
    address = command.address()
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(socket.create_connection(address, timeout=WAIT))
            stack.enter_context(listener.accept()[0])
        shown = screen.wait_for_picture(lambda lines: any("200 open of 200 connections" in line for line in lines))
        rows = [line for line in shown if re.match(r"127\.0\.0\.1:\d+ +open", line)]
        assert len(rows) >= 10
        assert f"and {200 - len(rows)} more" in shown
    shown = screen.wait_for_picture(lambda lines: any(line.startswith("0 open of 200") for line in lines))
    assert "last ended" in shown
    assert any(re.match(r"(done|client_reset|target_reset) after .* → ", line) for line in shown)
    command.process.send_signal(signal.SIGTERM)
    assert command.process.wait(WAIT) == 0


TUNNELS = (
    Column("tunnel", least=12, is_name=True),
    Column("state"),
    Column("from → to", least=20),
    Column("open", is_figure=True),
    Column("received", is_figure=True),
    Column("received/s", optional=True, is_figure=True),
)
TO_DB = "127.0.0.1:5432 → db.internal:5432 via ssh://me@bastion.example.org"
ROWS = [
    ["db", "up", TO_DB, "3", "1.2 MB", "12 kB"],
    ["web", "backing off", "127.0.0.1:8080 → 10.0.0.7:80", "0", "0 B", ""],
]


def content(rows=ROWS, **more):
    return Content(head=["2 of 2 tunnels listen"], columns=TUNNELS, rows=rows, foot=["3 open of 7 connections"], **more)


def texts(made, width=80, height=24):
    lines = [line.text for line in lay_out(made, width, height)]
    assert len(lines) <= height
    assert all(cell_len(line) <= width for line in lines), [line for line in lines if cell_len(line) > width]
    return lines


def test_where_there_is_room_all_of_it_is_shown():
    assert texts(content(), 130) == [
        "2 of 2 tunnels listen",
        f"tunnel  state        {'from → to':66}  open  received  received/s",
        f"db      up           {TO_DB:66}     3    1.2 MB       12 kB",
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
    rows = [["a-tunnel-with-a-very-long-name", "up", TO_DB, "3", "1.2 MB", ""]]
    assert "a-tunnel-with-a-very-long-name" in texts(content(rows), 90)[2]
    narrow = texts(content(rows), 64)[2]
    assert narrow.startswith("a-tunnel-with-a-very-long-name up") and " 127.0.0.1" in narrow and "1.2 MB" in narrow


def test_names_that_differ_at_their_ends_are_told_apart():
    rows = [
        [f"production-database-of-the-whole-{end}", "backing off", TO_DB, "3", "1.2 MB", ""] for end in ("eu", "us")
    ]
    for line, end in zip(texts(content(rows), 60)[2:4], ("eu", "us"), strict=True):
        name = line.split()[0]
        assert name.startswith("production-da") and "…" in name and name.endswith(f"whole-{end}")
    names = [[f"日本語{end * 20}", "up", TO_DB, "3", "1.2 MB", ""] for end in ("東", "京")]
    assert [line.split()[0][-1] for line in texts(content(names), 60)[2:4]] == ["東", "京"]


@pytest.mark.parametrize("width", [1, 2, 10, 20, 30, 40, 50])
@pytest.mark.parametrize("height", [1, 2, 3, 5, 100])
def test_no_terminal_is_too_small(width, height):
    made = content(ROWS * 20, errors=["db: it failed " * 10] * 5, ended=["done after 3 s: a → b"] * 8)
    assert texts(made, width, height)


def test_what_does_not_fit_is_counted():
    rows = [[f"t{number}", "up", TO_DB, str(number), "0 B", ""] for number in range(50)]
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
