"""``relay demo``: a web server, relays in front of it (plain, over SSH, I2P and both), and every byte compared."""

from __future__ import annotations

import http.client
import os
import shlex
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

import relay
import relay.testing

from ...addresses.i2p_parser import parse_sam
from ...api.urls import listen, target
from ...engine.tunnel import Tunnel
from ...eventloop.sockets import format_address
from ...process import PIPE, start
from ..demo_over_i2p import PATIENCE, few, published, reached, router
from ..output import failures_reported, print_line

CONNECTIONS = 4
BACKENDS = ("paramiko", "openssh")
Pages = Mapping[str, Path]


@click.command
@click.argument(
    "directory",
    metavar="[DIRECTORY]",
    required=False,
    type=click.Path(path_type=Path),
    help="Directory to serve [the files of relay].",
)
@click.option("--sam", metavar="HOST:PORT", help="SAM bridge of a router [one of the demo's own].")
def demo(directory: Path | None, sam: str | None) -> None:
    """Relay a web server on real files, fetch all of them through the relay, and compare every byte.

    Then the same over SSH, to a server inside this program: by paramiko and, where there is ssh, by that.

    And over I2P: published by one relay, reached by another, each in a process of its own, as the SAM bridge is that
    takes the place of a router. With --sam they meet in the real network, and some of the files are fetched.

    Last, a chain: over I2P to the SSH server, which has become a destination, and from there to the web server.
    """
    with failures_reported(debug=False):
        if sam is not None:
            parse_sam(sam)
        root = (directory or _own_files()).resolve(strict=True)
        pages = find_pages(root)
        if not pages:
            raise FileNotFoundError(2, "no files to serve; name a directory that has some", str(root))
        with web_server(pages) as server:
            print_line(f"web server   {format_address(server)}, on the {len(pages)} files of {root}")
            show(format_address(server), [], pages)
            with relay.testing.SSHServer() as bastion:
                there = format_address(bastion.address)
                print_line(f"\nssh server   {there}, inside this program; it sees the web server")
                for backend in BACKENDS if shutil.which("ssh") else BACKENDS[:1]:
                    show(format_address(server), [f"{bastion.url}&backend={backend}"], pages, f", by {backend}")
                with router(sam) as bridge:
                    some = pages if sam is None else few(pages)
                    with published(format_address(server), bridge) as name, reached(name, bridge) as address:
                        fetch_and_say(address, some, PATIENCE)
                    print_line("\na chain of hops: the ssh server as an I2P destination, and the web server behind it")
                    with published(format_address(bastion.address), bridge) as name:
                        ssh = bastion.url.replace(format_address(bastion.address), name)
                        show(format_address(server), [f"i2p:?sam={bridge}", ssh], some, patience=PATIENCE)
    print_line("\nNow your own service, for example one on port 8000:\n")
    print_line(f"    {command()} forward :0 127.0.0.1:8000")


def show(server: str, via: Sequence[str], pages: Pages, how: str = "", patience: float = 30) -> None:
    """Relay the web server and print the result.

    :param server: its address.
    :param via: the hops, if there are any.
    :param pages: what it serves.
    :param how: the end of the printed line.
    :param patience: seconds for the hops, and for each answer.
    """
    over = "".join(f" via {hop.partition('?')[0]}" for hop in via)
    make_send: Any = target(server, via)
    with Tunnel(listen(":0"), make_send, connect_timeout=patience, timeout=None) as tunnel:
        if via:
            make_send.ready(patience)
        print_line(f"relay        {format_address(tunnel.address)} → {server}{over}{how}")
        fetch_and_tell(tunnel, pages, patience)


def fetch_and_tell(tunnel: Tunnel, pages: Pages, patience: float) -> None:
    """Fetch every page through the relay, and print what the tunnel counted."""
    fetch_and_say(tunnel.address, pages, patience)
    if shutil.which("curl"):
        name = max(pages, key=lambda page: pages[page].stat().st_size)
        size = compare(name, pages[name], curl(f"http://{format_address(tunnel.address)}{name}"))
        print_line(f"curl         {name}, {size:,} bytes; as on disk")
    tunnel.close(drain=10.0)
    stats = tunnel.stats()
    engines = " and ".join(sorted({record.engine for record in tunnel.recent()}))
    print_line(
        f"relayed      {stats.accepted} connections: {stats.received:,} B received, {stats.sent:,} B sent, "
        f"by {engines}; {sum(stats.failed.values())} failed"
    )


def fetch_and_say(address: tuple[str, int], pages: Pages, patience: float = 30) -> None:
    """Fetch and compare every page through the relay, and print the result."""
    total = sum(fetch_all(address, pages, patience))
    pages_and_bytes = f"{len(pages)} pages, {total:,} bytes"
    print_line(f"fetched      {pages_and_bytes}, over {CONNECTIONS} connections at once; each is as on disk")


def find_pages(root: Path) -> dict[str, Path]:
    """Find the files below a directory, by their path in a URL; no hidden or built files, no links."""
    pages = {}
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")) and "." not in name)
        for name in sorted(files):
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file() and not path.is_symlink():
                pages["/" + quote(path.relative_to(root).as_posix())] = path
    return pages


def fetch_all(address: tuple[str, int], pages: Pages, patience: float = 30) -> list[int]:
    """Fetch all pages over several connections.

    :param patience: seconds that an answer may take.
    :returns: their sizes.
    :raises OSError: if one differs from its file.
    """
    names = list(pages)
    parts = [names[first::CONNECTIONS] for first in range(CONNECTIONS)]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        fetched = pool.map(lambda part: fetch(address, part, pages, patience), parts)
        return [size for sizes in fetched for size in sizes]


def fetch(address: tuple[str, int], names: Sequence[str], pages: Pages, patience: float = 30) -> list[int]:
    """Fetch some pages over one connection, with the HTTP client of Python's library."""
    client = http.client.HTTPConnection(*address, timeout=patience)
    sizes = []
    try:
        for name in names:
            # The server closes the connection: over I2P a half-close of the client would not arrive.
            client.request("GET", name, headers={"Connection": "close"} if name == names[-1] else {})
            answer = client.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise OSError(f"{name}: the web server answers {answer.status} {answer.reason}")
            sizes.append(compare(name, pages[name], body))
    except http.client.HTTPException as error:
        raise OSError(f"{name}: no complete answer came through the relay ({error!r})") from error
    finally:
        client.close()
    return sizes


def compare(name: str, path: Path, body: bytes) -> int:
    """Compare a page that came through the relay with its file, and return its size.

    :raises OSError: if it differs from its file.
    """
    if body != path.read_bytes():
        raise OSError(f"{name}: what came through the relay is not what {path} holds")
    return len(body)


def curl(url: str) -> bytes:
    """Fetch a page with curl."""
    # The user's .curlrc and proxy variables would send the request past the relay.
    with start(
        ["curl", "--disable", "--silent", "--show-error", "--fail", "--noproxy", "*", url], stdout=PIPE
    ) as client:
        body, _ = client.communicate()
    return bytes(body)


@contextmanager
def web_server(pages: Pages) -> Iterator[tuple[str, int]]:
    """A web server on the loopback that serves only these pages; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body leave together,
        disable_nagle_algorithm = True  # and the rest of a long body at once

        def do_GET(self) -> None:
            page = pages.get(self.path)
            body = page.read_bytes() if page else b"no such page\n"
            self.send_response(200 if page else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        # Python's server polls for its end at this interval.
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="demo web server", daemon=True)
        thread.start()
        try:
            yield "127.0.0.1", server.server_port
        finally:
            server.shutdown()
            thread.join()


def command() -> str:
    """Return the command by which the user can call this ``relay`` from the working directory."""
    here = Path(sys.executable).parent / "relay"
    found = shutil.which("relay")
    # The plain name is only right if the shell finds this very program under it.
    if not here.exists() or (found and Path(found).resolve() == here.resolve()):
        return "relay"
    return shlex.quote(str(here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here))


def _own_files() -> Path:
    package = Path(relay.__file__).parent
    return package.parent if (package.parent / "pyproject.toml").exists() else package
