"""A running relay for the status page: what happens in it is the same at each run, so that pictures of it are, too."""

import dataclasses
import itertools
import random
import time

from instance_double import Double

from relay.carriers.listing import CarrierStatus
from relay.daemon.recent_log import LogLine
from relay.daemon.status import BanStatus, ConnectionStatus, InstanceStatus, ProbeStatus, TunnelStatus
from relay.engine.records import Stats
from relay.operations.overview import _Point

HOSTS = ("192.0.2.14", "192.0.2.31", "198.51.100.7", "203.0.113.5", "2001:db8::1f")
ENDS = ("done", "done", "done", "idle", "done", "client_reset", "done", "refused", "done", "target_reset")
BY = {"done": "client", "idle": "relay", "client_reset": "client", "refused": "target", "target_reset": "target"}


class Scene(Double):
    """Six tunnels, three carriers, and connections that move bytes with each look.

    :param count: of the open connections.
    """

    def __init__(self, count=64):
        super().__init__()
        self._random = random.Random(13)
        now = time.time()
        self.facts = InstanceStatus(
            version="0.1.0", pid=4711, started=now - 3 * 86400, config="/etc/relay/relay.toml", draining=False,
            log_level="info",
        )  # fmt: skip
        probe = ProbeStatus("connect", 30.0, now + 1e6, 0.012)
        tunnels = [
            self._tunnel(
                "database", "127.0.0.1:5432", "db.internal:5432", ("ssh://me@bastion",), probe=probe, required=True
            ),
            self._tunnel("web", "127.0.0.1:8080", "web.internal:80", ("ssh://me@bastion",)),
            self._tunnel("proxy", "127.0.0.1:1080", "anywhere"),
            self._tunnel("mail", "[::1]:1993", "tls://mail.example.org:993"),
            self._tunnel(
                "backup", "127.0.0.1:8730", "vault:873", ("ssh://backup@vault",), state="waiting", figures=None,
                problem="ssh://backup@vault: connect: No route to host; trying again in 8 s",
            ),
            self._tunnel("wiki", "i2p:wiki", "127.0.0.1:3000", state="paused"),
        ]  # fmt: skip
        self.all = {tunnel.name: tunnel for tunnel in tunnels}
        self.open = {f"c{number}": self._connection(number, count) for number in range(count)}
        self.ended = [self._one_ended(number, now) for number in range(40)]
        self.lines = [
            LogLine(now - 7000, "info", "relay.cli", "5 of 6 tunnels listen"),
            LogLine(now - 3600, "info", "relay.cli", "SIGHUP: 1 tunnel tuned, 5 the same"),
            LogLine(now - 640, "warning", "relay.ssh", "ssh://me@bastion: no reply to a keepalive probe; reconnecting"),
            LogLine(now - 638, "info", "relay.ssh", "ssh://me@bastion: connected"),
            LogLine(now - 300, "warning", "relay", "denied peer=203.0.113.5:51234 tunnel=proxy rule=login"),
            LogLine(now - 95, "error", "relay.ssh", "ssh://backup@vault: connect: No route to host"),
        ]
        self.banned = [BanStatus(tunnel="proxy", limit="login", key=host, until=now + 50) for host in HOSTS[2:]]
        self._links = [
            CarrierStatus("ssh://me@bastion", "ssh", "up", now - 638, 2, 41, 0.018),
            CarrierStatus(
                "ssh://backup@vault", "ssh", "backing off", now - 95, 7, 0, None, "connect: No route to host"
            ),
            CarrierStatus("i2p://127.0.0.1:7656", "i2p", "up", now - 90000, 0, 3),
        ]

    def carriers(self):
        return self._links

    def tunnels(self, *, figures=True):
        self._move()
        return super().tunnels()

    def _tunnel(self, name, listen, target, via=(), state="listening", **fields):
        draw = self._random
        stats = Stats(
            draw.randrange(300, 9000), draw.randrange(1, 30), draw.randrange(10**7, 10**9),
            draw.randrange(10**8, 10**10), {"idle": draw.randrange(9), "refused": draw.randrange(4)},
        )  # fmt: skip
        return TunnelStatus(
            **{"figures": stats, "since": self.facts.started + draw.randrange(9000), **fields},
            name=name, state=state, listen=listen, target=target, via=via,
        )  # fmt: skip

    def _connection(self, number, count):
        draw = self._random
        tunnel = draw.choice(("database", "database", "web", "proxy", "mail"))
        target = self.all[tunnel].target
        return ConnectionStatus(
            id=f"c{number}", tunnel=tunnel, peer=f"{draw.choice(HOSTS[:4])}:{draw.randrange(1024, 65536)}",
            target="www.example.org:443" if target == "anywhere" else target.removeprefix("tls://"),
            age=1.5 + number * draw.random() * 60, received=draw.randrange(10**6), sent=draw.randrange(10**8),
            engine=draw.choice(("splice", "copy")), state=draw.choice(("open",) * 8 + ("half-closed", "connecting")),
            started=time.time(),
        )  # fmt: skip

    def _one_ended(self, number, now):
        reason = ENDS[number % len(ENDS)]
        one = self._connection(1000 + number, 1)
        age = self._random.random() * 40
        return dataclasses.replace(
            one, state="closed", reason=reason, by=BY[reason], age=age, started=now - 5 - number * 11 - age
        )

    def _move(self):
        """Move some bytes, and accept a few connections."""
        draw = self._random
        for key in draw.sample(sorted(self.open), min(len(self.open), 12)):
            one = self.open[key]
            received, sent = one.received + draw.randrange(9000), one.sent + draw.randrange(400_000)
            self.open[key] = dataclasses.replace(one, received=received, sent=sent, age=one.age + 1)
        for name, tunnel in self.all.items():
            if tunnel.figures is not None and tunnel.state == "listening":
                old = tunnel.figures
                new = old._replace(
                    accepted=old.accepted + draw.randrange(3),
                    active=max(1, old.active + draw.randrange(-2, 3)),
                    received=old.received + draw.randrange(200_000),
                    sent=old.sent + draw.randrange(3_000_000),
                )
                self.change(name, figures=new)


def history(make):
    """Return a constructor of ``Overview`` that knows two minutes before its first sample, and samples each second.

    :param make: the real one.
    """

    def make_with_history(self, instance):
        start = time.time()
        seconds = itertools.count()
        make(self, instance, lambda: start + next(seconds))
        draw, usual = random.Random(5), (400_000.0, 6_000_000.0, 88.0, 4.0)
        point = usual
        for ago in range(119, 0, -1):
            point = [
                max(0.3 * mean, old + (draw.random() - 0.5) * 0.3 * mean)
                for old, mean in zip(point, usual, strict=True)
            ]
            received, sent, active, accepted = point
            self._history.append(_Point(start - ago, received, sent, int(active), accepted))

    return make_with_history
