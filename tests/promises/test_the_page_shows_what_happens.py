"""The status page in a real Chromium: it shows the real state, live, whatever the names, and on any screen.

``WRITE_IMAGES=1`` writes the pictures of docs/images.
"""

import contextlib
import dataclasses
import json
import os
import re
import socket
import time
from pathlib import Path

import pytest
from browser import browser, opened
from command_rig import commands
from helpers import WAIT, wait_until
from instance_double import Double, served
from page_scene import Scene, history

from relay.engine.records import WarmFigures
from relay.operations import events, overview
from relay.targets.group import TargetState

IMAGES = Path(__file__).parents[2] / "docs" / "images"
TOKEN = "a-token-of-some-length"
HOSTILE = (
    "<img src=/pwned onerror=document.title='pwned'><script>document.title='pwned'</script>\u202edessap\u2066&amp;"
)
FILE = """
status = "127.0.0.1:0"
[tunnels.web]
listen = ":0"
target = "{}:{}"
required = true
[tunnels.broken]
listen = ":0"
target = "127.0.0.1:{}"
"""
CUT = """names => [...document.querySelectorAll(names)].filter(one => one.checkVisibility()
    && one.scrollWidth > one.clientWidth).map(one => one.textContent)"""
CONTRAST = """() => {
  // Every text on the screen whose contrast to its ground is below 4.5 (WCAG 2.2, 1.4.3).
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const over = (below, color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = below; canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = canvas.getImageData(0, 0, 1, 1).data; return `rgb(${r} ${g} ${b})`;
  };
  const light = (color) => {
    const parts = color.match(/\\d+/g).slice(0, 3).map((part) => part / 255)
      .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility() || element.closest("button:disabled, noscript")) continue;
    const chain = []; for (let one = element; one; one = one.parentElement) chain.unshift(one);
    const ground = chain.reduce((below, one) => over(below, getComputedStyle(one).backgroundColor), "rgb(255 255 255)");
    const [one, other] = [light(over(ground, getComputedStyle(element).color)), light(ground)];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) found.push(`${node.data.trim()}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def chromium(spawner_thread):
    with browser() as started:
        yield started


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(events, "INTERVAL", 0.1)


@contextlib.contextmanager
def page_of(chromium, instance, folder, *, address="", **options):
    """The status page of an instance, once it shows its state, and the app behind it."""
    with served(instance, folder) as app:
        with opened(chromium, "http://{}:{}/".format(*app.address) + address, **options) as page:
            page.wait_for_selector("[data-updated]")
            yield page


def column(page, table, number):
    return page.eval_on_selector_all(
        f"#{table} tbody tr:not(.empty) > :nth-child({number})", "cells => cells.map(cell => cell.innerText.trim())"
    )


def until(page, expression):
    """Wait until an expression of the page is true. The page's policy forbids the wait of playwright: it evaluates."""
    wait_until(lambda: page.evaluate(expression))


def follows(page):
    """Wait for the next update."""
    before = page.evaluate("document.body.dataset.updated")
    until(page, f"document.body.dataset.updated !== '{before}'")


# -- the real state ---------------------------------------------------------------------------------------------------


def test_it_shows_a_running_relay_live(chromium, tmp_path, runtime_directory, echo_server, reserved):
    file = tmp_path / "relay.toml"
    file.touch(0o600)
    file.write_text(FILE.format(*echo_server.address, reserved))
    with commands() as start:
        command = start(str(file), command="up")
        url = command.hear("status server at").partition("at ")[2].strip()
        where = {}
        for _ in range(2):
            name, _, rest = command.process.stdout.readline().partition(": listening on ")
            host, _, port = rest.partition(" → ")[0].rpartition(":")
            where[name] = (host, int(port))
        with opened(chromium, url) as page:
            page.wait_for_selector("[data-updated]")
            assert column(page, "tunnels", 1) == ["web", "broken"]
            assert page.inner_text("#health") == "Ready"
            assert str(command.process.pid) in page.inner_text("#process")
            assert str(file) in page.inner_text("#process")
            with socket.create_connection(where["web"], WAIT) as client:
                client.sendall(b"ping")
                assert client.recv(4) == b"ping"
                peer = "{}:{}".format(*client.getsockname())
                until(page, "document.querySelectorAll('#connections tbody tr:not(.empty)').length === 1")
                assert column(page, "connections", 1) == [peer]
                assert column(page, "connections", 4) == ["open"]
                assert page.inner_text("#tile-active .figure") == "1"
            until(page, "document.querySelectorAll('#ended tbody tr:not(.empty)').length === 1")
            assert column(page, "ended", 1) == [peer]
            assert column(page, "ended", 4)[0].split() == ["done", "by", "client"]
            with contextlib.suppress(OSError), socket.create_connection(where["broken"], WAIT) as client:
                client.recv(1)
            until(page, "document.querySelector('#ended').innerText.includes('refused')")
            until(page, "document.querySelector('#tile-failed .figure').textContent === '1'")
            # A reload that adds a tunnel writes to the log, and the page shows both.
            before = file.read_text()
            file.write_text(before + f'[tunnels.more]\nlisten = ":0"\ntarget = "127.0.0.1:{reserved}"\n')
            command.process.send_signal(1)
            until(page, "document.querySelectorAll('#tunnels tbody tr:not(.empty)').length === 3")
            until(page, "document.querySelector('#log').innerText.includes('reload: more: new')")
            assert command.end()[0] == 0
            until(page, "document.querySelector('#health').textContent === 'No answer'")
            page.problems.clear()  # the browser reports that nothing answers
            assert "Trying again" in page.inner_text("#notice")


def test_it_shows_bans_if_there_are_some(chromium, tmp_path):
    double = Double()
    many = [dataclasses.replace(double.banned[0], key=f"192.0.2.{number}") for number in range(120)]
    double.banned = []
    with page_of(chromium, double, tmp_path) as page:
        assert not page.is_visible("#bans")
        double.banned = [dataclasses.replace(many[0], key=HOSTILE, until=time.time() + 36.5 * 3600)]
        until(page, "!document.querySelector('#bans').hidden")
        rows = [column(page, "bans", number)[0] for number in range(1, 5)]
        assert rows[0].startswith("<img") and rows[1:] == ["a", "few", "36 h"]
        assert page.title() != "pwned"
        double.banned = many
        until(page, "document.querySelectorAll('#bans tbody tr:not(.empty)').length === 25")
        assert page.inner_text("#bans .count") == "1–25 of 100"


def test_a_page_that_is_open_sees_the_end_and_the_next_start(chromium, tmp_path):
    """The browser connects again by itself."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
        with contextlib.ExitStack() as stack:
            with served(Double(), tmp_path, address=address):
                page = stack.enter_context(opened(chromium, f"http://{address}/"))
                page.wait_for_selector("[data-updated]")
                assert page.inner_text("#health") == "Ready"
            until(page, "document.querySelector('#health').textContent === 'No answer'")
            second = Double()
            second.change("a", state="failed", problem="no route")
            with served(second, tmp_path, address=address):
                until(page, "document.querySelector('#health').textContent === 'Not ready, 1 problem'")
                assert page.is_hidden("#notice")
                page.problems.clear()


def test_with_a_token_the_browser_asks_for_it(chromium, tmp_path):
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_text(TOKEN)
    with served(Double(), tmp_path, is_public=True, token_file=str(file)) as app:
        url = "http://{}:{}/".format(*app.address)
        with opened(chromium, url, http_credentials={"username": "me", "password": TOKEN}) as page:
            page.wait_for_selector("[data-updated]")
            assert column(page, "tunnels", 1) == ["a", "b"]
            assert TOKEN not in page.url + page.content()
            page.problems.clear()  # the first answer was 401
        with opened(chromium, url, http_credentials={"username": "me", "password": "wrong"}) as page:
            assert "expected Authorization" in page.inner_text("body")
            page.problems.clear()


# -- hostile names, many connections ----------------------------------------------------------------------------------


def test_hostile_names_appear_as_text(chromium, tmp_path):
    double = Double()
    link = double.carriers()[0]
    with page_of(chromium, double, tmp_path, viewport={"width": 360, "height": 700}) as page:
        for name in ("\u05d0\u05d1\u05d2", "x" * 10_000, "a" * 190 + " " + "\u0301" * 9, HOSTILE):
            fields = {"listen": name, "target": name, "via": (name,), "state": "failed", "problem": name}
            double.all["b"] = dataclasses.replace(double.all["b"], name=name, **fields)
            double.open["c2"] = dataclasses.replace(double.open["c2"], peer=name, target=name, tunnel=name)
            ended = dataclasses.replace(double.ended[0], id=name, peer=name, target=name, reason=name)
            double.ended.append(ended)
            stats = double.all["a"].figures
            double.change("a", figures=stats._replace(accepted=stats.accepted + 1))
            double.lines = [double.lines[0]._replace(message=name)]
            double.carriers = lambda name=name: [dataclasses.replace(link, name=name, error=name)]
            for table in ("tunnels", "carriers", "connections", "ended", "log"):
                until(page, f"document.querySelector('#{table}').textContent.includes({json.dumps(name[:20])})")
            assert page.title() == "Ready, 1 problem – relay"
            assert page.query_selector("main img, main script, main a") is None
            assert len(page.content()) < 60_000
            assert page.evaluate("document.documentElement.scrollWidth") == 360
        for table in ("tunnels", "carriers", "log"):
            text = page.inner_text(f"#{table}")
            assert "<img src=/pwned onerror=document.title='pwned'><script>" in text
            assert "\\u202edessap\\u2066&amp;" in text


def test_it_shows_warm_streams(chromium, tmp_path):
    double = Double()
    double.change("b", warm=WarmFigures(2, 5, 3, 0, 0))
    double.open["c2"] = dataclasses.replace(double.open["c2"], warm=True)
    with page_of(chromium, double, tmp_path) as page:
        assert page.inner_text("#tunnels").count("warm") == 1
        assert "2 warm streams ready, 5 of 8 clients got one" in page.inner_text("#tunnels")
        assert page.inner_text("#connections").count("warm") == 1
        double.change("b", warm=None)
        until(page, "!document.querySelector('#tunnels').innerText.includes('warm')")


def test_it_shows_the_state_of_each_target_and_counts_the_problems_that_it_shows(chromium, tmp_path):
    double = Double()
    states = {"db1:1": "up", "db2:1": "down", HOSTILE: "disabled"}
    known = [TargetState(name, word, 1.0, 3, None, 0, "refused" * (word == "down")) for name, word in states.items()]
    double.change("b", targets=tuple(known))
    with page_of(chromium, double, tmp_path) as page:
        lines = page.eval_on_selector_all("#tunnels .route .target", "all => all.map(one => one.innerText)")
        assert lines[0] == "db2:1 down, 3 open: refused" and lines[2] == "db1:1 up, 3 open"
        assert lines[1].startswith("<img") and lines[1].endswith(" disabled, 3 open")
        shown = "all => all.map(one => one.className)"
        states = page.eval_on_selector_all("#tunnels .route .target .state", shown)
        assert states == ["state bad", "state warn", "state good"]
        assert page.inner_text("#health") == "Ready, 1 problem"
        assert page.eval_on_selector_all("#tunnels td:nth-child(2) .state", shown) == ["state bad", "state good"]
        assert "not reached: db2:1" in page.inner_text("#tunnels") and page.title() != "pwned"
        double.change("b", targets=tuple(known[i]._replace(state="up") for i in (0, 1)))
        until(page, "document.querySelector('#health').textContent === 'Ready'")
        double.change("b", targets=(known[0], known[2]))
        until(page, "document.querySelectorAll('#tunnels .route .target .warn').length === 1")
        assert page.inner_text("#health") == "Ready", "a target is disabled because somebody wanted it"
        double.change("b", targets=())
        until(page, "!document.querySelector('#tunnels .target')")


def test_two_thousand_connections_do_not_freeze_it(chromium, tmp_path, record_property):
    with page_of(chromium, Scene(2000), tmp_path) as page:
        assert page.inner_text("#connections .count") == "1–25 of 2,000"
        assert page.evaluate("document.querySelectorAll('*').length") < 2000
        # The longest time that the page did not answer while it was updated, in its own clock.
        longest = page.evaluate(
            """async () => {
              let longest = 0;
              const began = document.body.dataset.updated;
              let changes = 0, last = began;
              for (let before = performance.now(); changes < 5;) {
                await new Promise((resolve) => setTimeout(resolve));
                longest = Math.max(longest, performance.now() - before);
                before = performance.now();
                if (document.body.dataset.updated !== last) { changes += 1; last = document.body.dataset.updated; }
              }
              return longest;
            }"""
        )
        record_property(
            "measured", f"status page, 2,000 connections: it never stands still for more than {longest:.0f} ms"
        )
        page.click("#connections [data-step='1']")
        until(page, "document.querySelector('#connections .count').textContent === '26–50 of 2,000'")
        page.click("#connections [data-sort=sent]")
        until(page, "document.querySelector('#connections .count').textContent === '1–25 of 2,000'")
        largest = max(one.sent for one in Scene(2000).open.values())
        assert page.get_attribute("#connections th:has([data-sort=sent])", "aria-sort") == "descending"
        assert abs(float(column(page, "connections", 7)[0].removesuffix(" MB")) - largest / 1e6) < 5
        page.fill("#filter", "proxy half-closed")
        until(page, "document.querySelector('#connections .count').textContent.includes('filtered from 2,000')")
        assert set(column(page, "connections", 2)) == {"proxy"}
        assert set(column(page, "connections", 4)) == {"half-closed"}


# -- use --------------------------------------------------------------------------------------------------------------


def test_it_works_by_keyboard(chromium, tmp_path):
    with page_of(chromium, Scene(100), tmp_path) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the tunnels"
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.dataset.sort") == "name"
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(outline) == "solid", "the focus is visible"
        page.keyboard.press("Enter")
        until(page, "document.querySelector('#tunnels tbody th').innerText.startsWith('backup')")
        page.keyboard.press("Enter")
        until(page, "document.querySelector('#tunnels tbody th').innerText.startsWith('wiki')")
        follows(page)
        assert page.evaluate("document.activeElement.dataset.sort") == "name", "an update does not move the focus"
        page.keyboard.press("/")
        page.keyboard.type("web")
        until(page, "document.querySelectorAll('#tunnels tbody tr:not(.empty)').length === 1")
        assert page.url.endswith("#filter=web&tunnels=-name"), "a link has the view"
        page.keyboard.press("Escape")
        until(page, "document.querySelectorAll('#tunnels tbody tr:not(.empty)').length === 6")
        page.focus("#pause")
        page.keyboard.press("Space")
        until(page, "document.querySelector('#notice').innerText.startsWith('Paused')")
        page.keyboard.press("Space")
        follows(page)
        assert page.is_hidden("#notice")


def test_a_link_shows_its_view_and_a_wrong_one_the_usual_one(chromium, tmp_path):
    with page_of(chromium, Scene(100), tmp_path, address="#filter=db.internal&connections=-peer") as page:
        assert page.input_value("#filter") == "db.internal"
        peers = column(page, "connections", 1)
        assert peers == sorted(peers, reverse=True)
        page.evaluate("location.hash = '#connections=nonsense&tunnels_from=x&filter=' + 'y'.repeat(999)")
        until(page, "document.querySelector('#connections').innerText.includes('No row matches')")


def test_each_control_has_a_name_and_each_table_its_headers(chromium, tmp_path):
    with page_of(chromium, Scene(), tmp_path) as page:
        for role, count in (("table", 6), ("searchbox", 1), ("main", 1), ("status", 1)):
            assert page.get_by_role(role).count() == count
        assert page.get_by_role("searchbox").get_attribute("aria-describedby") == "filter-help"
        tree = page.locator("body").aria_snapshot()
        assert not re.search(r"^\s*- (button|link|img|textbox|searchbox)(:|$)", tree, re.MULTILINE), "one has no name"
        headers = page.eval_on_selector_all("thead th", "cells => cells.map(cell => [cell.scope, cell.innerText])")
        assert all(scope == "col" and text for scope, text in headers)
        assert page.eval_on_selector_all(
            "tbody tr:not(.empty)", "rows => rows.every(row => row.querySelector('th[scope=row]'))"
        )
        assert page.eval_on_selector_all("h1, h2", "all => all.map(one => one.tagName)")[0] == "H1"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_every_screen_in_colours_that_can_be_read(chromium, tmp_path, monkeypatch, scheme):
    """And these are the pictures of the docs."""
    monkeypatch.setattr(overview.Overview, "__init__", history(overview.Overview.__init__))
    with page_of(chromium, Scene(), tmp_path, color_scheme=scheme, reduced_motion="reduce") as page:
        follows(page)
        assert page.evaluate("getComputedStyle(document.querySelector('#pause')).transitionDuration") == "0s"
        for width, height, picture in (
            (1280, 1010, f"status-{scheme}.png"),
            (900, 740, None),
            (700, 740, None),
            (360, 740, f"status-phone-{scheme}.png"),
        ):
            page.set_viewport_size({"width": width, "height": height})
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert page.evaluate(CONTRAST) == []
            assert page.evaluate(CUT, "thead button") == []
            assert width > 560 or page.evaluate(CUT, "#tunnels .under") == [], "the target is behind a cut"
            parts = page.eval_on_selector_all("main > section", "all => all.map(one => one.id)")
            assert parts == ["tiles", "tunnels", "carriers", "connections", "bans", "ended", "log"]
            assert [page.locator(f"#{part}").is_visible() for part in parts] == [True] * 7
            graphs = page.eval_on_selector_all(".tile svg .line", "all => all.map(one => one.getAttribute('d').length)")
            assert len(graphs) == 4 and min(graphs) > 100
            if picture is not None:
                _picture(page, picture)


def test_no_cell_is_cut_at_any_width(chromium, tmp_path):
    scene = Scene()
    scene.change("mail", hops="backing off", since=time.time() - 7100)  # a wide cell: 118 min
    with page_of(chromium, scene, tmp_path) as page:
        until(page, "document.querySelector('#tunnels').innerText.includes('backing off')")
        for width in (1500, 1280, 1241, 1240, 1100, 941, 940, 761, 760, 561, 560, 390, 360):
            page.set_viewport_size({"width": width, "height": 740})
            cut = page.evaluate(CUT, "th, td, .state")
            assert [text for text in cut if text] == [], width


def _picture(page, name):
    picture = page.screenshot(animations="disabled")
    assert picture.startswith(b"\x89PNG")
    if os.environ.get("WRITE_IMAGES"):
        IMAGES.mkdir(exist_ok=True)
        (IMAGES / name).write_bytes(picture)
    assert (IMAGES / name).stat().st_size < 250_000
