"""The app of operators, served for a double of a relay: its answers, its errors, and what it keeps out."""

from __future__ import annotations

import base64
import dataclasses
import time
from typing import NamedTuple

import jsonschema
import pytest
from instance_double import PROBED, check_contract, served

from relay.carriers.listing import CarrierStatus
from relay.daemon.status import TunnelStatus
from relay.operations.app import as_json
from relay.operations.openapi import document
from relay.targets.group import TargetState

TOKEN = "a-token-of-some-length"


@pytest.fixture
def app(double, tmp_path):
    with served(double, tmp_path) as app:
        yield app


@pytest.fixture
def token_file(tmp_path):
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_text(TOKEN + "\n")
    return str(file)


def test_the_double_keeps_the_contract(double):
    check_contract(double)


def test_every_answer_is_as_the_description_says(app, double):
    """All operations are requested; each answer fits its schema, and no operation is without one."""
    described = app.get("/openapi.json").json()
    assert described == document()
    seen = set()

    def check(method, path, answer):
        operation = described["paths"][path][method]
        assert str(answer.status_code) in operation["responses"], (method, path, answer.status_code, answer.text)
        content = operation["responses"][str(answer.status_code)].get("content")
        if content is None:
            assert answer.content == b""
        elif "application/json" not in content:
            assert answer.headers["content-type"].partition(";")[0] in content
        else:
            schema = {**content["application/json"]["schema"], "components": described["components"]}
            jsonschema.validate(answer.json(), schema, cls=jsonschema.Draft202012Validator)
        seen.add((method, path))

    double.change("b", probe=PROBED)
    for path in described["paths"]:
        for method in described["paths"][path]:
            if path == "/events":  # which never ends: test_events.py
                seen.add((method, path))
                continue
            for name, number in (("a", "c1"), ("nope", "nope")):
                url = path.replace("{name}", name).replace("{id}", number)
                body = {"json": {"level": "debug"}} if path == "/log-level" else {}
                check(method, path, app.http.request(method.upper(), url, **body))
    for state in ("failed", "opening"):
        double.change("a", state=state, figures=None, problem="why")
        check("get", "/tunnels", app.get("/tunnels"))
        check("get", "/readyz", app.get("/readyz"))
        check("post", "/tunnels/{name}/pause", app.http.post("/tunnels/a/pause"))
    check("delete", "/bans", app.http.delete("/bans?key=192.0.2.7&tunnel=a"))
    check("delete", "/quotas", app.http.delete("/quotas?key=*"))
    double.rejection = "relay.toml:3: no"
    check("post", "/reload", app.http.post("/reload"))
    check("post", "/upgrade", app.http.post("/upgrade"))
    check("put", "/log-level", app.http.put("/log-level", content=b"x" * 70000))
    assert seen == {(method, path) for path in described["paths"] for method in described["paths"][path]}


def test_the_description_has_the_docs_of_the_fields(app):
    schemas = app.get("/openapi.json").json()["components"]["schemas"]

    def about(name, field):
        return schemas[name]["properties"][field]["description"]

    assert about("Connection", "target") == "The name of the outgoing stream; null while it is unknown."
    assert about("Figures", "received") == "Bytes from clients."
    assert about("TunnelRow", "more_targets") == "The targets that are left out."
    assert schemas["Connection"]["description"] == "The part of a ConnectionRecord that operators see."


def test_the_description_is_valid_openapi_as_far_as_a_schema_says(app):
    for name, schema in document()["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert name[0].isupper()


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/tunnels/nope", 404, "known are a, b"),
        ("GET", "/connections?tunnel=nope", 404, "nope"),
        ("POST", "/tunnels/nope/pause", 404, "nope"),
        ("DELETE", "/connections/nope", 404, "nope"),
        ("GET", "/nothing", 404, "not found"),
        ("GET", "/no%1Bthing", 404, r"GET /no\x1bthing: not found"),
        ("GET", "/tunnels/no%0Ape", 404, r"no\npe"),
        ("POST", "/tunnels", 405, "method not allowed"),
        ("PATCH", "/reload", 405, "method not allowed"),
        ("POST", "/reload?dry_run=perhaps", 400, "true or false"),
        ("PUT", "/log-level", 400, "debug, info"),
        ("DELETE", "/bans", 400, "key: expected the clients that count together"),
        ("DELETE", "/bans?key=192.0.2.8", 404, "there are no bans with this key"),
        ("DELETE", "/bans?key=192.0.2.7&tunnel=nope", 404, "no such tunnel"),
        ("POST", "/reopen", 500, "/var/log/relay: No space left"),
    ],
)
def test_an_error_is_json_with_its_status(app, method, path, status, words):
    answer = app.http.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert words in answer.json()["error"]


def test_an_action_that_the_state_does_not_allow_is_a_conflict(app, double):
    double.change("a", state="draining")
    answer = app.http.post("/tunnels/a/pause")
    assert (answer.status_code, answer.json()) == (409, {"error": "a: it is draining"})


def test_a_reload_that_is_rejected_says_why(app, double):
    double.rejection = "relay.toml:3: no"
    answer = app.http.post("/reload")
    assert (answer.status_code, answer.json()) == (422, {"error": "relay.toml:3: no", "problems": ["relay.toml:3: no"]})


def test_a_dry_run_is_passed_on(app):
    assert app.http.post("/reload?dry_run=true").json()["dry_run"] is True
    assert app.http.post("/reload").json()["dry_run"] is False


def test_a_bug_is_a_500_and_the_server_goes_on(app, double, caplog):
    double.at_reload = lambda: 1 / 0
    answer = app.http.post("/reload")
    assert "POST /reload failed" in caplog.text
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/json")
    assert app.get("/tunnels").status_code == 200


def test_actions_act(app, double):
    for path, state in (("pause", "paused"), ("resume", "listening"), ("drain", "draining")):
        assert app.http.post(f"/tunnels/a/{path}").status_code == 204
        assert double.all["a"].state == state
    assert app.http.delete("/connections/c1").status_code == 204
    assert "c1" not in double.open
    assert app.http.put("/log-level", json={"level": "error"}).status_code == 204
    assert double.facts.log_level == "error"
    assert app.http.post("/stop").status_code == 204
    assert double.facts.draining


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"level": 5}', b'{"level": "loud"}', b"\xff", b"[" * 60000])
def test_a_body_that_is_no_log_level_is_rejected(app, double, body):
    assert app.http.put("/log-level", content=body).status_code == 400
    assert double.facts.log_level == "info"


# -- the status address -----------------------------------------------------------------------------------------------


def test_bans_are_listed_and_cleared(app):
    ban = {"tunnel": "a", "limit": "few", "key": "192.0.2.7", "until": 2e9}
    assert app.get("/bans").json() == app.get("/bans?tunnel=a").json() == {"bans": [ban]}
    assert app.get("/bans?tunnel=b").json() == {"bans": []}
    assert app.http.delete("/bans?key=192.0.2.7").json() == {"cleared": 1}
    assert app.get("/bans").json() == {"bans": []}
    assert app.get("/quotas").json()["quotas"][0]["used"] == 5


def test_the_status_address_shows_the_same_but_acts_on_nothing(app, double):
    assert app.tcp.get("/tunnels").json() == {**app.get("/tunnels").json(), "more": False}
    for method, path in (("POST", "/stop"), ("DELETE", "/connections/c1"), ("PUT", "/log-level"), ("POST", "/nothing")):
        answer = app.tcp.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
    assert not double.facts.draining
    assert "c1" in double.open


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "", "127.0.0.1.evil.example", "[::1", "[nope]:1"])
def test_a_page_of_another_host_cannot_read_it(app, host):
    """DNS rebinding: the name leads here, and the browser sends it as the host."""
    expected = 200 if host == "[::1" else 421
    assert app.tcp.get("/tunnels", headers={"Host": host}).status_code == expected


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9464", "[::1]:9464", "10.0.0.1"])
def test_its_own_names_are_fine(app, host):
    assert app.tcp.get("/tunnels", headers={"Host": host}).status_code == 200


def basic(*words):
    return "Basic " + base64.b64encode(":".join(words).encode()).decode()


def test_with_a_token_nothing_is_shown_without_it(double, tmp_path, token_file):
    with served(double, tmp_path, is_public=True, token_file=token_file) as app:
        wrong = [f"Basic {TOKEN}", "Basic", "Basic \xff", basic(TOKEN, ""), basic("", TOKEN + "x"), basic(TOKEN)]
        for header in (None, "Bearer wrong", "Bearer", f"Bearer {TOKEN}x", "Bearer \xff", f"Digest {TOKEN}", *wrong):
            headers = {} if header is None else {"Authorization": header.encode("latin-1")}
            for path in ("/readyz", "/", "/page.js", "/events"):
                answer = app.tcp.get(path, headers=headers)
                assert answer.status_code == 401
                assert answer.headers.get_list("www-authenticate") == [
                    'Basic realm="relay: the token is the password", charset="UTF-8"',
                    'Bearer realm="relay"',
                ]
        for header in (f"Bearer {TOKEN}", basic("anyone", TOKEN), basic("", TOKEN)):
            assert app.tcp.get("/tunnels", headers={"Authorization": header}).status_code == 200
        assert app.get("/tunnels").status_code == 200, "the control socket needs none"


# -- health -----------------------------------------------------------------------------------------------------------


def health(client, path):
    answer = client.get(path)
    return answer.status_code, answer.json()["status"], answer.json()["problems"]


def test_liveness_is_about_loops_alone(app, double):
    double.change("a", state="failed", problem="no network")
    double.stop()
    assert health(app.tcp, "/livez") == (200, "ok", {})
    double.stuck = ["b"]
    assert health(app.tcp, "/livez") == (503, "failed", {"b": "its loop did not turn within 5 s"})


@pytest.mark.parametrize("state", ["opening", "waiting", "paused", "draining", "closed", "failed"])
def test_readiness_is_about_required_tunnels(app, double, state):
    assert health(app.tcp, "/readyz") == (200, "ok", {})
    double.change("b", state=state)
    assert health(app.tcp, "/readyz") == (200, "ok", {}), "b is not required"
    assert health(app.tcp, "/readyz/b") == (503, "failed", {"b": state})
    double.change("a", state=state, problem="why")
    assert health(app.tcp, "/readyz") == (503, "failed", {"a": f"{state}: why"})
    assert app.tcp.get("/readyz/nope").status_code == 404


def test_a_tunnel_with_a_stuck_worker_is_not_ready(app, double):
    """Some of its clients wait; relay is about to replace the worker, and so is alive."""
    double.change("a", problem="worker 2 does not answer", stuck=True)
    assert health(app.tcp, "/readyz") == (503, "failed", {"a": "worker 2 does not answer"})
    assert health(app.tcp, "/livez") == (200, "ok", {})


def test_a_tunnel_none_of_whose_targets_is_up_is_not_ready(app, double):
    def targets(*states):
        return tuple(TargetState(f"t{state}", state, 1.0, 0, None, 1, "refused") for state in states)

    double.change("a", problem="a: refused; b is disabled", targets=targets("down", "disabled"))
    assert health(app.tcp, "/readyz") == (503, "failed", {"a": "no target is up: a: refused; b is disabled"})
    double.change("a", problem="", targets=targets("down", "up"))
    assert health(app.tcp, "/readyz") == (200, "ok", {})


def test_a_probe_counts_until_it_is_too_old(app, double):
    def probe(**fields):
        double.change("a", probe=dataclasses.replace(PROBED, **fields))
        return health(app.tcp, "/readyz")

    assert probe() == (503, "failed", {"a": "no probe has ended yet"})
    assert probe(finished=time.time()) == (200, "ok", {})
    assert probe(finished=time.time(), problem="refused") == (503, "failed", {"a": "probe: refused"})
    status, _, problems = probe(finished=time.time() - 61)
    assert status == 503
    assert "the last probe was 61 s ago" in problems["a"]


def test_while_it_ends_it_is_not_ready(app, double):
    double.stop()
    for path in ("/readyz", "/readyz/b"):
        answer = app.tcp.get(path)
        assert (answer.status_code, answer.json()["status"]) == (503, "draining")
        assert answer.json()["error"] == "the program is ending"


def test_head_is_allowed_and_has_no_body(app):
    answer = app.tcp.head("/readyz")
    assert (answer.status_code, answer.content) == (200, b"")


def test_a_path_that_is_not_utf_8_is_shown(app, double):
    """The operating system lets files have any bytes as their names."""
    double.facts = dataclasses.replace(double.facts, config="/etc/caf\udce9.toml")
    assert app.get("/instance").json()["config"] == "/etc/caf\udce9.toml"
    double.rejection = "caf\udce9.toml:3: no"
    answer = app.http.post("/reload")
    assert (answer.status_code, answer.json()["error"]) == (422, double.rejection)


class Pair(NamedTuple):
    metrics: int
    other: tuple[int, ...]


@dataclasses.dataclass
class Form:
    metrics: dict[int, Pair]
    text: str = "x"


def test_a_field_is_there_whatever_its_name() -> None:
    assert as_json(Form({1: Pair(2, (3,))})) == {"metrics": {"1": {"metrics": 2, "other": [3]}}, "text": "x"}


def test_the_counters_for_the_metrics_are_left_out() -> None:
    tunnel = TunnelStatus(name="a", state="listening", listen="127.0.0.1:1", target="db:5432")
    carrier = CarrierStatus("ssh://a", "ssh", "up", 0.0, 0, 0)
    assert "metrics" not in as_json(tunnel) and as_json(tunnel)["name"] == "a"
    assert "metrics" not in as_json(carrier) and as_json(carrier)["name"] == "ssh://a"
