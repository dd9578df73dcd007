"""``relay demo``, and the command that it ends with."""

import http.client
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import command_rig
import pytest
from helpers import WAIT, refusing, wait_until

import relay
from relay.cli import demo_over_i2p
from relay.cli.commands import demo
from relay.testing import SAMBridge

ROOT = Path(relay.__file__).parent.parent


def run(*arguments, **options):
    return command_rig.run("demo", *arguments, **options)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A directory of files, some of which are private."""
    tmp_path = tmp_path_factory.mktemp("pages")
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


@pytest.fixture(scope="module")
def done(pages, warm_command):
    """The output of a whole demo of these files, run once for all tests in the directory of the project."""
    before = listing()
    ended = run(str(pages[0]), cwd=ROOT)
    assert listing() == before, "it has left a trace"
    return ended


def listing():
    shown = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=False)
    return sorted(line for line in shown.stdout.splitlines() if line.startswith("??"))


@pytest.fixture(scope="module")
def alone(pages, warm_command, tmp_path_factory):
    """The same, where there is no other program, in a directory of its own."""
    folder = tmp_path_factory.mktemp("alone")
    return run(str(pages[0]), cwd=folder, env={"PATH": str(folder), "HOME": str(folder)}), folder


def test_it_compares_every_byte_and_says_so(pages, done):
    site, sizes = pages
    assert (done.returncode, done.stderr) == (0, "")
    assert f"on the 4 files of {site}" in done.stdout
    assert f"4 pages, {sum(sizes.values()):,} bytes" in done.stdout
    assert "each is as on disk" in done.stdout
    assert re.search(r"\d+ connections: [\d,]+ B received, [\d,]+ B sent, .* 0 failed", done.stdout)


def backends(said):
    """The backends that a demo has shown, each with every page."""
    shown = re.findall(r"^relay .* via ssh://relay@127.0.0.1:\d+, by (\w+)$", said, re.MULTILINE)
    assert said.count("; 0 failed") == 1 + len(shown) + 1  # the last one over a chain
    assert said.count("each is as on disk") == 1 + len(shown) + 2  # the last ones over I2P and over a chain
    return shown


def test_it_shows_an_ssh_hop_over_each_backend(done):
    assert (done.returncode, done.stderr) == (0, "")
    assert backends(done.stdout) == (["paramiko", "openssh"] if shutil.which("ssh") else ["paramiko"])


def test_it_needs_no_other_program(alone):
    done, _ = alone
    assert (done.returncode, done.stderr) == (0, "")
    assert backends(done.stdout) == ["paramiko"]


OVER_I2P = re.compile(
    r"^relay        (\S+\.b32\.i2p) → 127\.0\.0\.1:\d+, in a process of its own; reached from outside\n"
    r"relay        127\.0\.0\.1:\d+ → i2p://\1, in a process of its own\n"
    r"fetched      (\d+) pages, [\d,]+ bytes, over 4 connections at once; each is as on disk$",
    re.MULTILINE,
)


A_CHAIN = re.compile(
    r"^relay        (\S+\.b32\.i2p) → 127\.0\.0\.1:\d+, in a process of its own; reached from outside\n"
    r"relay        127\.0\.0\.1:\d+ → 127\.0\.0\.1:\d+ via i2p: via ssh://relay@\1\n"
    r"fetched      (\d+) pages, [\d,]+ bytes, over 4 connections at once; each is as on disk$",
    re.MULTILINE,
)


def test_it_goes_over_i2p_with_a_bridge_of_its_own(done):
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^sam bridge   127\.0\.0\.1:\d+, in a process of its own", done.stdout, re.MULTILINE)
    assert OVER_I2P.search(done.stdout)[2] == "4"
    assert A_CHAIN.search(done.stdout)[2] == "4"


def test_it_goes_over_i2p_through_a_router(pages):
    with SAMBridge() as router:
        done = run(str(pages[0]), "--sam", router.sam)
        wait_until(lambda: not router.sessions)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"\ni2p router   {router.sam}; it may take some minutes" in done.stdout
    assert OVER_I2P.search(done.stdout)[2] == "3"  # without the large one
    assert A_CHAIN.search(done.stdout)[2] == "3"


def test_without_a_router_it_says_so(pages):
    with refusing() as (host, port):
        done = run(str(pages[0]), "--sam", f"{host}:{port}")
    assert done.returncode == 1
    assert re.fullmatch(r"relay: a program of the demo failed: i2p:\S+: no SAM bridge there .*\n", done.stderr)


def test_a_wrong_bridge_is_a_wrong_command_line():
    done = run("--sam", "h")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("relay: sam 'h': no port")


def test_some_pages_are_the_largest_that_will_do_and_small_ones(tmp_path):
    pages = {}
    for size in (*range(20), demo_over_i2p.LARGEST, demo_over_i2p.LARGEST + 1):
        pages[f"/{size}"] = tmp_path / str(size)
        pages[f"/{size}"].write_bytes(b"x" * size)
    assert set(demo_over_i2p.few(pages)) == {f"/{demo_over_i2p.LARGEST}", *(f"/{size}" for size in range(9))}
    assert demo_over_i2p.few({"/1": pages["/1"]}) == {"/1": pages["/1"]}
    assert demo_over_i2p.few({}) == {}


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; sys.exit('relay: no way')", "no way"),
        ("print('something else', flush=True); input()", "something else"),
        ("pass", "it says nothing"),
        ("print('cut off', end='', flush=True)", "cut off"),
    ],
)
def test_a_program_that_fails_is_told_in_one_line(spawner_thread, code, said):
    with pytest.raises(OSError, match=f"^a program of the demo failed: {said}$"):
        with demo_over_i2p.program("-c", code) as program:
            program.hear("listening on .*")


def test_a_program_is_heard_line_by_line_and_ended(spawner_thread):
    with demo_over_i2p.program("-c", "print('a 1\\nb 2', flush=True); input()") as program:
        assert program.hear(r"a (\d)")[1] == "1"
        assert program.hear(r"b (\d)")[1] == "2"


def test_a_program_that_says_nothing_is_not_waited_for_for_ever(spawner_thread, monkeypatch):
    monkeypatch.setattr(demo_over_i2p, "PATIENCE", 0.1)
    with pytest.raises(OSError, match="it says nothing"):
        with demo_over_i2p.program("-c", "input()") as program:
            program.hear(".*x")


def test_it_serves_relays_own_files():
    with command_rig.Command(command="demo").process as process:
        first = process.stdout.readline()
        process.terminate()
        process.communicate(timeout=WAIT)
    assert re.fullmatch(rf"web server   \S+, on the \d{{3,}} files of {re.escape(str(ROOT))}\n", first)


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


def test_a_page_that_differs_is_a_failure(pages, tmp_path):
    site, _ = pages
    found = demo.find_pages(site)
    with demo.web_server(found) as address:
        (other := tmp_path / "other").write_text("something else")
        with pytest.raises(OSError, match="/index.html: what came through the relay is not what .*other holds"):
            demo.fetch(address, ["/index.html"], {"/index.html": other})


def test_a_directory_without_files_gets_one_line_and_status_1(tmp_path):
    done = run(str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"relay: {tmp_path}: no files to serve; name a directory that has some\n"


@pytest.mark.parametrize("here", ["root", "elsewhere"])
def test_the_command_at_its_end_works(pages, done, alone, here):
    said, folder = (done, ROOT) if here == "root" else alone
    command = shlex.split(said.stdout.splitlines()[-1])
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
