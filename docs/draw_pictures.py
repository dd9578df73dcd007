"""Draw the pictures of the pages: ``python docs/draw_pictures.py`` writes ``docs/images/*.svg``.

Each follows the reader's choice of light or dark. With ``--check`` it writes nothing, lists the pictures that are out
of date, and exits with status 1 if there are any.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.sax.saxutils import escape

FOLDER = Path(__file__).parent / "images"
STYLE = """<style>
text { font: 13px sans-serif; fill: #223 } .small { font-size: 11px; fill: #556 } .head { font-weight: bold }
.page { fill: #fff } .box { fill: #eef1f6; stroke: #667 } .relay { fill: #e3f2e6; stroke: #475 }
.good { fill: #8fcf9f } .wait { fill: #f2d27a } .bad { fill: #e58a84 } .bar { font-size: 11px }
.none { fill: #fff; stroke: #889; stroke-dasharray: 4 3 }
.line { fill: none; stroke: #556; stroke-width: 1.5 } .thin { fill: none; stroke: #99a; stroke-dasharray: 3 3 }
.tip { fill: #556 }
@media (prefers-color-scheme: dark) {
text { fill: #e6e8ee } .small { fill: #a9b0bd } .page { fill: #14171c } .box { fill: #262c36; stroke: #8a93a3 }
.relay { fill: #1e3a28; stroke: #7fa58b } .good { fill: #2f7a45 } .wait { fill: #8a6a12 } .bad { fill: #9c3b35 }
.none { fill: #14171c } .line { stroke: #a9b0bd } .thin { stroke: #667 } .tip { fill: #a9b0bd } }
</style>"""
_TIP = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>'
)


class Picture:
    """An SVG that is drawn from the top to the bottom.

    :param width: in pixels.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self._head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
            f"<title>{escape(title)}</title>"
        )
        self._parts = [f'<rect class="page" width="{width}" height="{height}"/>']

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        """Write a line."""
        of = f' class="{kind}"' if kind else ""
        self._parts.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{of}>{escape(text)}</text>')

    def box(self, x: float, y: float, width: float, text: str, kind: str = "box", height: float = 36) -> None:
        """Draw a box with a text in its middle."""
        self._parts.append(f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5"/>')
        self.text(x + width / 2, y + height / 2 + 5, text, anchor="middle")

    def arrow(self, path: str, kind: str = "line") -> None:
        """Draw an arrow along a path of SVG."""
        self._parts.append(f'<path class="{kind}" d="{path}" marker-end="url(#tip)"/>')

    def moment(self, x: float, top: float, bottom: float, text: str) -> None:
        """Draw a point in time through all bars, with its name above."""
        self._parts.append(f'<path class="thin" d="M{x:g} {top:g}V{bottom:g}"/>')
        self.text(x, top - 5, text, "small", "middle")

    def bars(self, y: float, name: str, *spans: tuple[float, float, str, str]) -> None:
        """Draw what one thing does in time: spans with their begin, end, kind and text."""
        self.text(10, y + 17, name)
        for begin, end, kind, text in spans:
            self._parts.append(
                f'<rect class="{kind}" x="{begin:g}" y="{y:g}" width="{end - begin:g}" height="24" rx="3"/>'
            )
            self.text((begin + end) / 2, y + 16, text, "bar", "middle")

    def svg(self) -> str:
        """Return the picture."""
        return "\n".join([self._head, STYLE, _TIP, *self._parts, "</svg>"]) + "\n"


def route() -> str:
    """Draw a client, the listener of relay, hops and the target."""
    made = Picture(760, 150, "A route: a client, relay, hops, a target")
    made.box(170, 20, 170, "", "none", 110)
    made.text(255, 120, "relay", "small", "middle")
    for x, width, text, kind in (
        (15, 105, "client", "box"),
        (185, 140, "listener", "relay"),
        (390, 90, "hop 1", "box"),
        (520, 90, "hop 2", "box"),
        (650, 95, "target", "box"),
    ):
        made.box(x, 54, width, text, kind)
    for begin, end in ((120, 184), (325, 389), (480, 519), (610, 649)):
        made.arrow(f"M{begin} 72H{end}")
    for x, y, text in (
        (67, 112, "any program"),
        (255, 40, "TCP · TLS · SSH · I2P · proxy"),
        (500, 30, "SSH · I2P · Tor · proxies · WebSockets · programs"),
        (500, 112, "zero or more hops"),
        (692, 112, "TCP · TLS · I2P"),
    ):
        made.text(x, y, text, "small", "middle")
    return made.svg()


def lost_carrier() -> str:
    """Draw how one carrier is lost, and how one of two is."""
    made = Picture(760, 366, "A lost carrier in time")
    made.text(10, 20, "One carrier", "head")
    made.moment(320, 42, 186, "the connection is lost")
    made.moment(500, 42, 186, "it is up again")
    made.bars(50, "listener", (150, 750, "good", "open"))
    made.bars(
        82, "carrier", (150, 320, "good", "up"), (320, 500, "wait", "retries with back-off"), (500, 750, "good", "up")
    )
    made.bars(114, "open connection", (150, 320, "good", "carries bytes"), (320, 430, "bad", "reset: carrier_lost"))
    made.bars(146, "new client", (400, 500, "wait", "waits"), (500, 750, "good", "served, within connect_timeout"))
    made.text(10, 220, "carriers=2", "head")
    made.moment(320, 228, 360, "carrier 1 is lost")
    made.bars(236, "carrier 1", (150, 320, "good", "up"), (320, 500, "wait", "retries"), (500, 750, "good", "up"))
    made.bars(268, "carrier 2", (150, 750, "good", "up; its connections go on"))
    made.bars(300, "on carrier 1", (150, 320, "good", "carries bytes"), (320, 430, "bad", "reset: carrier_lost"))
    made.bars(332, "new client", (400, 750, "good", "served at once, over carrier 2"))
    return made.svg()


def reload_and_upgrade() -> str:
    """Draw a reload in one process, and an upgrade between two processes with one socket."""
    made = Picture(760, 372, "A reload and an upgrade")
    made.text(10, 20, "Reload: one process, another route", "head")
    made.moment(380, 42, 154, "the new hops are up")
    made.bars(50, "listening socket", (150, 750, "good", "open; no client is refused"))
    made.bars(82, "new clients", (150, 380, "box", "the old route"), (380, 750, "relay", "the new route"))
    made.bars(114, "open connections", (150, 520, "box", "the old route, until they end (on_reload = keep)"))
    made.text(10, 192, "Upgrade: two processes, one socket", "head")
    made.moment(290, 214, 366, "socket handed over")
    made.moment(430, 214, 366, "ready")
    made.moment(650, 214, 366, "drain is over")
    made.bars(222, "listening socket", (150, 750, "good", "open; no client is refused"))
    made.bars(
        254, "old process", (150, 430, "box", "accepts clients"), (430, 650, "wait", "drains: they end or are reset")
    )
    made.bars(286, "new process", (220, 430, "none", "opens, connects hops"), (430, 750, "relay", "accepts clients"))
    made.bars(318, "if it fails", (290, 430, "bad", "ends"), (430, 750, "box", "the old process goes on as before"))
    return made.svg()


def names() -> str:
    """Draw a chain of hops, and what resolves each name."""
    made = Picture(760, 190, "A chain, and what resolves which name")
    places = [
        (10, "client", "box"),
        (150, "relay", "relay"),
        (300, "outer", "box"),
        (450, "inner", "box"),
        (610, "db.internal", "box"),
    ]
    for x, text, kind in places:
        made.box(x, 40, 130 if x == 610 else 90, text, kind)
    for begin, end in ((100, 149), (240, 299), (390, 449), (540, 609)):
        made.arrow(f"M{begin} 58H{end}")
    for x, text in ((345, "ssh://me@outer"), (495, "ssh://me@inner"), (675, "the target, :5432")):
        made.text(x, 30, text, "small", "middle")
    for x, end, text in (
        (195, 335, "resolves “outer”"),
        (345, 485, "resolves “inner”"),
        (495, 665, "resolves “db.internal”"),
    ):
        made.arrow(f"M{x} 77V100H{end}V78", "line")
        made.text((x + end) / 2, 117, text, "small", "middle")
    made.text(
        10,
        150,
        "TLS runs from relay to the target. A proxy resolves what is behind it; an I2P router resolves .i2p names.",
        "small",
    )
    made.text(
        10,
        170,
        "Without hops, relay resolves all names itself. relay never looks up .onion or .i2p in the DNS.",
        "small",
    )
    return made.svg()


def admission() -> str:
    """Draw the order in which relay decides about a client."""
    made = Picture(760, 160, "Deny, allow, limit, admit, in their order")
    steps = [
        ("deny", "a rule matches:", "“deny RULE”"),
        ("allow", "no rule matches:", "“allow”"),
        ("limit", "a limit is exceeded:", "“limit NAME”, “ban NAME”"),
        ("admit", "your function says no:", "“admit”"),
    ]
    made.box(10, 30, 70, "client")
    made.arrow("M80 48H113")
    for number, (name, why, rule) in enumerate(steps):
        x = 114 + 138 * number
        made.box(x, 30, 90, name, "relay")
        made.arrow(f"M{x + 90} 48H{x + 137}")
        made.arrow(f"M{x + 45} 66V96", "line")
        made.text(x + 45, 112, why, "small", "middle")
        made.text(x + 45, 127, rule, "small", "middle")
    made.box(666, 30, 84, "target")
    made.text(
        10,
        150,
        "A rejected client has the reason denied; its rule is in the log and the metrics. The target sees nothing.",
        "small",
    )
    return made.svg()


PICTURES = {
    "route": route,
    "lost-carrier": lost_carrier,
    "reload-upgrade": reload_and_upgrade,
    "names": names,
    "admission": admission,
}


def main(words: list[str]) -> int:
    """Write or compare the pictures; the exit status."""
    drawn = {FOLDER / f"{name}.svg": draw() for name, draw in PICTURES.items()}
    stale = [path for path, text in drawn.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        sys.stdout.write(f"{path.name}\n")
        if "--check" not in words:
            path.write_text(drawn[path])
    return int(bool(stale) and "--check" in words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
