"""``relay demo``, and the command that it ends with."""

from __future__ import annotations

import http.client
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import WAIT

import relay
from relay.cli import demo

RELAY = str(Path(sys.executable).parent / "relay")
ROOT = Path(relay.__file__).parent.parent


def run(*arguments, **options):
    return subprocess.run(
        [RELAY, "demo", *arguments], capture_output=True, text=True, timeout=50, check=False, **options
    )


@pytest.fixture
def pages(tmp_path):
    """A directory of files, some of which are nobody's business."""
    sizes = {"index.html": 7, "a b/ü?.txt": 100_003, "deep/er/empty": 0, "big.bin": 3_000_000}
    for name, size in sizes.items():
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    site = tmp_path / "site"
    (site / ".git").mkdir()
    (site / ".git" / "config").write_text("secret")
    (site / ".env").write_text("secret")
    (site / "__pycache__").mkdir()
    (site / "__pycache__" / "x.pyc").write_text("built")
    (tmp_path / "outside").write_text("secret")
    (site / "link").symlink_to(tmp_path / "outside")
    return site, sizes


def test_it_compares_every_byte_and_says_so(pages):
    site, sizes = pages
    done = run(str(site))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"on the 4 files of {site}" in done.stdout
    assert f"4 pages, {sum(sizes.values()):,} bytes" in done.stdout
    assert "each is as on disk" in done.stdout
    assert re.search(r"\d+ connections: [\d,]+ bytes from clients and [\d,]+ to them, .* 0 failed", done.stdout)


def backends(said):
    """The backends that a demo has shown, each with every page."""
    shown = re.findall(r"^relay .* via ssh://relay@127.0.0.1:\d+, by (\w+)$", said, re.MULTILINE)
    assert said.count("each is as on disk") == said.count("; 0 failed") == 1 + len(shown)
    return shown


def test_it_shows_an_ssh_hop_over_each_backend(pages):
    done = run(str(pages[0]))
    assert (done.returncode, done.stderr) == (0, "")
    assert backends(done.stdout) == (["paramiko", "openssh"] if shutil.which("ssh") else ["paramiko"])


def test_it_needs_no_other_program(pages, tmp_path):
    done = run(str(pages[0]), env={"PATH": str(tmp_path), "HOME": str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, "")
    assert backends(done.stdout) == ["paramiko"]


def test_it_serves_relays_own_files_and_leaves_no_trace():
    before = listing()
    done = run()
    assert done.returncode == 0
    assert f"files of {ROOT}" in done.stdout
    assert listing() == before


def listing():
    shown = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=False)
    return sorted(line for line in shown.stdout.splitlines() if line.startswith("??"))


def test_it_serves_nothing_hidden_linked_or_built(pages):
    site, sizes = pages
    found = demo.find_pages(site)
    assert {path.relative_to(site).as_posix() for path in found.values()} == set(sizes)
    with demo.web_server(found) as address:
        client = http.client.HTTPConnection(*address, timeout=WAIT)
        for name in ("/.git/config", "/.env", "/link", "/../outside", "/%2e%2e/outside", "/"):
            client.request("GET", name)
            answer = client.getresponse()
            assert (answer.status, answer.read()) == (404, b"no such page\n")
        client.close()


def test_a_page_that_differs_is_a_failure(pages, monkeypatch):
    site, _ = pages
    found = demo.find_pages(site)
    with demo.web_server(found) as address:
        (other := site / "other").write_text("something else")
        with pytest.raises(OSError, match="/index.html: what came through the relay is not what .*other holds"):
            demo.fetch(address, ["/index.html"], {"/index.html": other})


def test_a_directory_without_files_gets_one_line_and_status_1(tmp_path):
    done = run(str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"relay: {tmp_path}: no files to serve; name a directory that has some\n"


@pytest.mark.parametrize("here", ["root", "elsewhere"])
def test_the_command_at_its_end_works(pages, tmp_path, serve, here):
    folder = ROOT if here == "root" else tmp_path
    last = run(str(pages[0]), cwd=folder).stdout.splitlines()[-1]
    command = shlex.split(last)
    assert command[1:] == ["forward", ":0", "127.0.0.1:8000"]
    with demo.web_server(demo.find_pages(pages[0])) as address:
        # Verbatim, but for the port of the service, which is not ours to take.
        command[-1] = "{}:{}".format(*address)
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
            try:
                listening = re.match(r"listening on (\S+):(\d+) ", process.stdout.readline())
                client = http.client.HTTPConnection(listening[1], int(listening[2]), timeout=WAIT)
                client.request("GET", "/index.html")
                assert client.getresponse().read() == b"xxxxxxx"
                client.close()
            finally:
                process.terminate()
        assert process.returncode == 0
