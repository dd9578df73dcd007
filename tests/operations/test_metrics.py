"""``relay.operations.metrics``: the page of metrics, as Prometheus reads it."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from documents import PAGES, ROOT
from helpers import WAIT, exchange, reserved_port, wait_until
from prometheus_client.parser import text_string_to_metric_families

from relay.carriers.listing import CarrierStatus
from relay.daemon.status import CertificateLoads, InstanceStatus, ReloadStatus, TunnelStatus
from relay.engine.records import REASONS, Metrics, WarmFigures
from relay.engine.statistics import AGES, Statistics
from relay.eventloop.histogram import CONNECT_TIMES, Histogram
from relay.operations.metric_families import FAMILIES, LAGS
from relay.operations.metrics import CONTENT_TYPE, MetricsPage
from relay.spawning.worker_slot import WorkerStatus
from relay.targets.group import TargetState
from relay.transports.resume.figures import ResumeFigures

EMPTY = Statistics("", None, None).metrics([])
WARM = EMPTY._replace(
    warm=WarmFigures(ready=2, hits=5, misses=3, ended=4, expired=7),
    hop_times={"1:target": EMPTY.connect_times},
    bans={"few": 3},
    throttled=1.5,
)
TARGETS = (
    TargetState("db:5432", "up", 9.0, 2, 0.01, 0, ""),
    TargetState("db2:5432", "down", 3.0, 0, None, 4, "db2:5432: refused"),
)
RELOADS = ReloadStatus(3, 2, False, 1e9)
WORKERS = (WorkerStatus(1, 10, "running", 2), WorkerStatus(2, None, "waiting", 1))
HOSTILE = 'a"b\\c\nd{e}\N{RIGHT-TO-LEFT OVERRIDE}f #'


def tunnel(name: str, metrics: Metrics | None = EMPTY, **values: Any) -> TunnelStatus:
    settled = {"state": "listening", "listen": "127.0.0.1:1", "target": "db:5432", **values}
    return TunnelStatus(name=name, metrics=metrics, **settled)


def carrier(name: str, **values: Any) -> CarrierStatus:
    return CarrierStatus(
        **{"name": name, "kind": "ssh", "state": "up", "since": 0.0, "losses": 0, "streams": 0, **values}
    )


class Running:
    """An instance with these tunnels and carriers."""

    def __init__(
        self,
        *tunnels: TunnelStatus,
        carriers: tuple[CarrierStatus, ...] = (),
        draining: bool = False,
        reloads: ReloadStatus | None = RELOADS,
        workers: tuple[WorkerStatus, ...] = WORKERS,
    ) -> None:
        self.tunnels = lambda **_: tunnels
        self.carriers = lambda: carriers
        self.status = lambda **_: InstanceStatus(
            version="1.2",
            pid=1,
            started=0.0,
            config="",
            draining=draining,
            log_level="info",
            reloads=reloads,
            workers=workers,
            resumes=ResumeFigures(5, 4, 1, 2, 70_000),
        )
        self.timed: list[str] = []
        self.stuck: list[str] = []

    def time_loops(self, names: Collection[str], turned: Callable[[str, float], object]) -> list[str]:
        self.timed += names
        for name in names:
            if name not in self.stuck:
                turned(name, 0.003)
        return [name for name in names if name != "gone"]


def page(*tunnels: TunnelStatus, **values: Any) -> str:
    return MetricsPage(Running(*tunnels, **values)).render().decode()  # type: ignore[arg-type]


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


def of(text: str, name: str, **labels: str) -> float | None:
    return samples(text).get((name, frozenset(labels.items())))


def test_several_targets_have_samples() -> None:
    text = page(tunnel("db", targets=TARGETS), tunnel("one"))
    assert of(text, "relay_target_up", tunnel="db", target="db:5432") == 1
    assert of(text, "relay_target_up", tunnel="db", target="db2:5432") == 0
    assert of(text, "relay_target_connections", tunnel="db", target="db:5432") == 2
    assert of(text, "relay_target_failures_total", tunnel="db", target="db2:5432") == 4
    assert 'relay_target_up{tunnel="one"' not in text


def test_each_counter_has_its_sample() -> None:
    metrics = EMPTY._replace(
        accepted=9,
        states={"connecting": 1, "open": 2, "half-closed": 3},
        ended={**EMPTY.ended, "refused": 4},
        received=100,
        sent=200,
        spliced_received=30,
        spliced_sent=150,
        denied={"access-list": 0, "login": 6},
        accept_errors={"EMFILE": 2, "EPROTO": 1},
    )
    text = page(tunnel("db", metrics), tunnel("web", EMPTY._replace(accept_errors={"EMFILE": 1})))
    assert of(text, "relay_connections_accepted_total", tunnel="db") == 9
    assert of(text, "relay_connections_active", tunnel="db", state="half-closed") == 3
    assert of(text, "relay_connections_total", tunnel="db", reason="refused") == 4
    assert {
        reason for reason in REASONS if of(text, "relay_connections_total", tunnel="web", reason=reason) == 0
    } == set(REASONS)
    shown = [
        of(text, "relay_bytes_total", tunnel="db", direction=direction, engine=engine)
        for direction in ("in", "out")
        for engine in ("copy", "splice")
    ]
    assert shown == [70, 30, 50, 150]
    assert of(text, "relay_denied_total", tunnel="db", rule="login") == 6
    assert [of(text, "relay_accept_errors_total", errno=name) for name in ("EMFILE", "EPROTO", "ENFILE")] == [3, 1, 0]


def test_only_a_tunnel_with_warm_streams_has_their_samples() -> None:
    text = page(tunnel("db", WARM), tunnel("web"))
    results = {"streams": {}, "connections_total": {"result": "hit"}, "closed_total": {"reason": "expired"}}
    assert [of(text, f"relay_warm_{name}", tunnel="db", **labels) for name, labels in results.items()] == [2, 5, 7]
    assert of(text, "relay_warm_connections_total", tunnel="db", result="miss") == 3
    assert of(text, "relay_warm_closed_total", tunnel="db", reason="ended") == 4
    assert not [labels for name, labels in samples(text) if "warm" in name and ("tunnel", "web") in labels]
    assert "\n\n" not in text


def test_workers_are_counted_by_their_state() -> None:
    text = page()
    assert [of(text, "relay_workers", state=state) for state in ("running", "waiting", "ended")] == [1, 1, 0]
    assert of(text, "relay_worker_restarts_total") == 3
    assert not [name for name, _ in samples(page(workers=())) if "worker" in name]


def test_limits_have_their_metrics() -> None:
    text = page(tunnel("db", WARM), tunnel("web"))
    assert of(text, "relay_bans_active", tunnel="db", limit="few") == 3
    assert [of(text, "relay_throttled_seconds_total", tunnel=name) for name in ("db", "web")] == [1.5, 0]
    assert {
        labels for name, labels in samples(text) if name == "relay_bans_active" and ("tunnel", "web") in labels
    } == set()


def test_a_histogram_is_cumulative() -> None:
    connect = Histogram((1, 2, 0, 0, 0, 0, 0, 0, 0, 4), 500.5)
    text = page(tunnel("db", EMPTY._replace(hop_times={"1:ssh": EMPTY.connect_times, "2:target": connect})))
    labels = {"tunnel": "db", "hop": "2:target"}
    buckets = [of(text, "relay_connect_seconds_bucket", **labels, le=le) for le in ("0.001", "0.005", "120.0", "+Inf")]
    assert buckets == [1, 3, 3, 7]
    assert of(text, "relay_connect_seconds_sum", **labels) == 500.5
    assert of(text, "relay_connect_seconds_count", **labels) == 7
    assert of(text, "relay_connect_seconds_count", tunnel="db", hop="1:ssh") == 0
    ends = {dict(labels)["le"] for name, labels in samples(text) if name == "relay_connection_seconds_bucket"}
    assert ends == {str(bound) for bound in AGES} | {"+Inf"}
    assert len(CONNECT_TIMES) == len(connect.counts) - 1


@pytest.mark.parametrize(
    ("state", "up"), [("listening", 1), ("paused", 1), ("draining", 0), ("waiting", 0), ("failed", 0), ("opening", 0)]
)
def test_a_tunnel_is_up_while_its_listener_is_open(state: str, up: int) -> None:
    assert of(page(tunnel("db", None, state=state)), "relay_tunnel_up", tunnel="db") == up


@pytest.mark.parametrize(
    ("finished", "problem", "ready"), [(None, "", 0), (1e9, "", 1), (1e9, "refused", 0)], ids=["none", "good", "bad"]
)
def test_a_tunnel_is_ready_after_a_probe_that_came_through(finished: float | None, problem: str, ready: int) -> None:
    probe = SimpleNamespace(finished=finished, seconds=0.25, problem=problem)
    text = page(tunnel("db", probe=probe))
    assert of(text, "relay_tunnel_ready", tunnel="db") == ready
    assert of(text, "relay_tunnel_last_probe_seconds", tunnel="db") == (None if finished is None else 0.25)
    assert of(text, "relay_tunnel_last_probe_timestamp_seconds", tunnel="db") == finished


def test_without_a_probe_it_is_neither_ready_nor_not() -> None:
    assert of(page(tunnel("db")), "relay_tunnel_ready", tunnel="db") is None


def test_a_tunnel_that_was_never_open_has_no_counters() -> None:
    text = page(tunnel("db", None, state="waiting"))
    assert {name for name, labels in samples(text) if ("tunnel", "db") in labels} == {"relay_tunnel_up"}


def test_carriers_of_one_name_are_one() -> None:
    name = "ssh://me@bastion"
    two = (
        carrier(name, state="backing off", losses=2, streams=0),
        carrier(name, losses=1, streams=5, rtt=0.02),
        carrier("i2p:", kind="i2p", state="connecting"),
    )
    text = page(carriers=two)
    labels = {"carrier": name, "kind": "ssh", "number": "1", "worker": "0"}
    names = ("relay_carrier_up", "relay_carrier_losses_total", "relay_carrier_streams", "relay_carrier_rtt_seconds")
    assert [of(text, one, **labels) for one in names] == [0, 3, 5, 0.02]
    assert [of(text, one, **labels | {"carrier": "i2p:", "kind": "i2p"}) for one in names] == [0, 0, 0, None]


def test_a_carrier_that_is_down_in_one_worker_shows() -> None:
    text = page(
        carriers=[carrier("ssh://a"), carrier("ssh://a", worker=1), carrier("ssh://a", worker=2, state="failed")]
    )
    labels = {"carrier": "ssh://a", "kind": "ssh", "number": "1"}
    assert [of(text, "relay_carrier_up", **labels, worker=one) for one in "012"] == [1, 1, 0]


def test_several_carriers_of_one_hop_are_apart() -> None:
    text = page(carriers=[carrier("ssh://a", number=number, losses=number) for number in (1, 2)])
    losses = [
        of(text, "relay_carrier_losses_total", carrier="ssh://a", kind="ssh", number=one, worker="0") for one in "12"
    ]
    assert losses == [1, 2]


def test_the_connect_times_of_carriers_of_one_name_are_added_up() -> None:
    quick, slow = Histogram((2, *[0] * 8, 0), 0.001), Histogram((0, *[0] * 8, 1), 130.0)
    text = page(carriers=(carrier("ssh://a", metrics=quick), carrier("ssh://a", metrics=slow)))
    name, labels = "relay_carrier_connect_seconds", {"carrier": "ssh://a", "kind": "ssh", "number": "1", "worker": "0"}
    buckets = [of(text, f"{name}_bucket", **labels, le=le) for le in ("0.001", "120.0", "+Inf")]
    assert buckets == [2, 2, 3]
    assert (of(text, f"{name}_sum", **labels), of(text, f"{name}_count", **labels)) == (130.001, 3)


def test_reloads_have_their_metrics_if_there_is_a_file() -> None:
    text = page()
    assert of(text, "relay_config_reloads_total", result="success") == 3
    assert of(text, "relay_config_reloads_total", result="failure") == 2
    assert of(text, "relay_config_last_reload_successful") == 0
    assert of(text, "relay_config_last_reload_success_timestamp_seconds") == 1e9
    assert not [name for name, _ in samples(page(reloads=None)) if name.startswith("relay_config")]


def test_a_certificate_has_its_end() -> None:
    text = page(tunnel("site", certificate_end=1.5e9, certificate_loads=CertificateLoads(2, 1)), tunnel("db"))
    name = "relay_certificate_not_after_timestamp_seconds"
    assert (of(text, name, tunnel="site"), of(text, name, tunnel="db")) == (1.5e9, None)
    name = "relay_certificate_loads_total"
    assert [of(text, name, tunnel="site", result=result) for result in ("success", "failure")] == [2, 1]
    assert of(text, name, tunnel="db", result="success") is None


def test_a_scrape_measures_the_loops_that_have_connections_for_the_next_one() -> None:
    busy = EMPTY._replace(states={"connecting": 0, "open": 1, "half-closed": 0})
    running = Running(tunnel("a", busy), tunnel("stuck", busy), tunnel("gone", busy), tunnel("idle"))
    running.stuck = ["stuck", "gone"]
    metrics = MetricsPage(running)  # type: ignore[arg-type]
    counts = [of(metrics.render().decode(), "relay_loop_lag_seconds_count") for _ in range(3)]
    assert counts == [0, 1, 2]
    assert sorted(running.timed) == ["a"] * 3 + ["gone"] * 3 + ["stuck"], "one that has not turned is not asked again"
    assert of(metrics.render().decode(), "relay_loop_lag_seconds_bucket", le="0.005") == 3
    assert len(LAGS) + 1 == len([labels for name, labels in samples(page()) if name == "relay_loop_lag_seconds_bucket"])


def test_the_resumable_streams_have_their_metrics() -> None:
    text = page()
    names = ("attempts_total", "losses_total", "refused_total", "held_bytes")
    assert [of(text, f"relay_resume_{name}") for name in names] == [5, 1, 2, 70_000]
    assert of(text, "relay_resumes_total") == 4


def test_the_process_has_its_metrics() -> None:
    text = page(draining=True)
    assert of(text, "relay_draining") == 1
    (build,) = [labels for name, labels in samples(text) if name == "relay_build_info"]
    assert ("version", "1.2") in build
    assert of(text, "relay_pipes_used") is not None and of(text, "relay_pipes_free") == 32
    assert of(text, "process_open_fds") and of(text, "process_cpu_seconds_total") is not None


@pytest.mark.parametrize(
    "name", [HOSTILE, "x" * 10_000, "\udc80", "100 %s"], ids=["markup", "long", "surrogate", "percent"]
)
def test_a_hostile_name_is_a_label_value_and_no_more(name: str) -> None:
    text = page(tunnel(name), carriers=(carrier(name),))
    shown = name.encode(errors="replace").decode()
    assert of(text, "relay_tunnel_up", tunnel=shown) == 1
    assert of(text, "relay_connections_active", tunnel=shown, state="open") == 0
    assert of(text, "relay_bytes_total", tunnel=shown, direction="in", engine="copy") == 0
    assert of(text, "relay_connection_seconds_count", tunnel=shown) == 0
    assert of(text, "relay_carrier_up", carrier=shown, kind="ssh", number="1", worker="0") == 1
    assert of(text, "relay_carrier_connect_seconds_count", carrier=shown, kind="ssh", number="1", worker="0") == 0


def test_no_label_is_of_a_peer() -> None:
    labels = {label for family in FAMILIES for label in family.labels}
    assert labels == {
        "tunnel", "state", "reason", "direction", "engine", "rule", "limit", "carrier", "kind", "number", "worker",
        "errno", "version", "python", "result", "hop", "target", "tag",
    }  # fmt: skip


def test_the_labels_are_those_of_the_table() -> None:
    probe = SimpleNamespace(finished=1.0, seconds=1.0, problem="")
    text = page(
        tunnel("db", WARM, probe=probe, certificate_end=1.0, certificate_loads=CertificateLoads(1, 0), targets=TARGETS),
        tunnel("labelled", labels={"tag": "it"}),
        carriers=(carrier("ssh://a", rtt=1.0),),
    )
    for family in text_string_to_metric_families(text):
        if family.name.startswith("relay_"):
            full = family.name + ("_total" if family.type == "counter" else "")
            (entry,) = [one for one in FAMILIES if one.name == full]
            assert family.type == entry.kind and family.documentation == entry.help
            assert family.samples, full
            assert {label for sample in family.samples for label in sample.labels} - {"le"} == set(entry.labels)


def test_the_page_of_the_documentation_has_every_metric() -> None:
    rows = re.findall(r"^\| `(relay_\w+)` \| (\w+) \| ([^|]*) \| ([^|]*) \|$", PAGES["logs"], re.MULTILINE)
    assert [(name, kind, tuple(re.findall(r"`(\w+)`", labels)), text) for name, kind, labels, text in rows] == [
        (family.name, family.kind, family.labels, family.help.rstrip(".")) for family in FAMILIES
    ]


def test_promtool_has_no_objection() -> None:
    text = page(tunnel("db"), tunnel(HOSTILE), carriers=(carrier(HOSTILE), carrier("i2p:", rtt=0.1)))
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text.encode(), capture_output=True, timeout=WAIT, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


@contextlib.contextmanager
def served(metrics: MetricsPage):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.end_headers()
            self.wfile.write(metrics.render())

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = False
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def prometheus(target: int, folder):
    """A Prometheus that scrapes a port; its own port."""
    with reserved_port() as port:
        yield from _prometheus(target, folder, port)


def _prometheus(target: int, folder, port: int):
    scrape = {"job_name": "relay", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
    configuration = {"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}
    (folder / "prometheus.json").write_text(json.dumps(configuration))  # JSON is YAML
    command = [
        "prometheus", f"--config.file={folder / 'prometheus.json'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield port
        finally:
            process.terminate()


def asked(port: int, path: str, **values: str) -> Any:
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(values)}", timeout=WAIT
        ) as answer:
            return json.load(answer)["data"]
    except OSError:
        return None  # it has not started


def test_a_real_prometheus_reads_it(tmp_path, relayed) -> None:
    made = relayed()
    client, far = made.connect()
    exchange(client, far, b"four")

    class Live(Running):
        def __init__(self) -> None:
            super().__init__(carriers=(carrier(HOSTILE),))
            self.tunnels = lambda: (tunnel(HOSTILE, made.tunnel.metrics()),)

    with served(MetricsPage(Live())) as target, prometheus(target, tmp_path) as port:  # type: ignore[arg-type]
        query = 'sum by (tunnel) (relay_bytes_total{direction="in"})'
        wait_until(lambda: (asked(port, "query", query=query) or {}).get("result"))
        (result,) = asked(port, "query", query=query)["result"]
        assert (result["metric"], result["value"][1]) == ({"tunnel": HOSTILE}, "4")
        (scraped,) = asked(port, "targets")["activeTargets"]
        assert (scraped["health"], scraped["lastError"]) == ("up", "")
        names = {
            entry["metric"]["__name__"]: entry
            for entry in asked(port, "query", query='{__name__=~"relay_.+"}')["result"]
        }
        expected = {family.name for family in FAMILIES if family.kind != "histogram"}
        absent = {name for name in expected if re.search("probe|ready|rtt|certificate|warm|target|bans|info", name)}
        assert expected - absent <= set(names)
        kinds = asked(port, "metadata")
        for family in FAMILIES:
            assert [(entry["type"], entry["help"]) for entry in kinds[family.name]] == [(family.kind, family.help)]


DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "grafana-dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def test_the_dashboard_shows_metrics_that_exist() -> None:
    text = page(tunnel("db", WARM, targets=TARGETS), carriers=(carrier("ssh://a"),))
    known = {family.name for family in FAMILIES} | {name for name, _ in samples(text)}
    variables = [one["query"]["query"] for one in DASHBOARD["templating"]["list"] if one["type"] == "query"]
    queries = [target["expr"] for panel in PANELS for target in panel["targets"]] + variables
    named = {name for query in queries for name in re.findall(r"\b(?:relay|process)_\w+", query)}
    assert named <= known
    shown = {name.removesuffix("_bucket") for name in named}
    assert {family.name for family in FAMILIES} - shown == {
        "relay_tunnel_last_probe_timestamp_seconds", "relay_config_reloads_total", "relay_certificate_loads_total",
        "relay_tunnel_info",
    }  # fmt: skip
    labels = {label for family in FAMILIES for label in family.labels} | {"job", "instance", "le"}
    for query in queries:
        assert set(re.findall(r"[{,](\w+)(?:=~|!~|=)", query)) <= labels
        for group in re.findall(r"by \(([^)]*)\)", query):
            assert set(group.split(", ")) <= labels


def test_the_panels_of_the_dashboard_have_texts_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24
        taken |= cells
    assert all(panel["title"] and panel["description"] for panel in PANELS)


def test_prometheus_understands_each_query_of_the_dashboard(tmp_path: Path) -> None:
    variables = {"$__rate_interval": "1m", "$job": "relay", "$instance": ".*", "$tunnel": ".*"}
    rules = []
    for panel in PANELS:
        for target in panel["targets"]:
            query = target["expr"]
            for name, value in variables.items():
                query = query.replace(name, value)
            rules.append({"record": f"panel:{panel['id']}:{target['refId']}", "expr": query})
    (tmp_path / "rules.json").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", str(tmp_path / "rules.json")],
        capture_output=True, text=True, timeout=WAIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


RULES = ROOT / "docs" / "relay.rules.yml"


def test_promtool_accepts_the_rules_for_alerts() -> None:
    done = subprocess.run(
        ["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, timeout=WAIT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"SUCCESS: \d+ rules found", done.stdout)


def test_the_rules_for_alerts_use_metrics_that_exist() -> None:
    text = RULES.read_text()
    lines = [line for line in text.splitlines() if not re.search("summary|description", line)]
    named = set(re.findall(r"\b(?:relay|process)_\w+", "\n".join(lines)))
    known = {family.name for family in FAMILIES} | {name for name, _ in samples(page(tunnel("db")))}
    assert named and named <= known | {"process_open_fds", "process_max_fds"}
    alerts = re.findall(r"- alert: (\w+)", text)
    assert len(set(alerts)) == len(alerts) == text.count("summary: ") == text.count("severity: ")
