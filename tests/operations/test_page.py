"""The files of the status page, and the headers of each answer."""

import re

import pytest
from instance_double import Double, served

from relay.operations.page import FILES, HEADERS, content


@pytest.fixture
def app(tmp_path):
    with served(Double(), tmp_path) as app:
        yield app


@pytest.mark.parametrize("path", FILES)
def test_each_file_is_served(app, path):
    answer = app.tcp.get(path)
    assert (answer.status_code, answer.content) == (200, content(path)[0])
    assert answer.headers["content-type"].partition(";")[0] == FILES[path][1]
    assert answer.headers["cache-control"] == "no-cache", "a new version is loaded after an upgrade"
    assert app.tcp.head(path).content == b""


@pytest.mark.parametrize("path", ["/", "/page.js", "/tunnels", "/metrics", "/nothing", "/tunnels/nope"])
def test_every_answer_restricts_what_a_browser_does_with_it(app, path):
    headers = app.tcp.get(path).headers
    assert {name: headers[name] for name in HEADERS} == HEADERS
    assert app.tcp.post(path).headers["content-security-policy"] == HEADERS["Content-Security-Policy"]


def test_the_policy_allows_nothing_but_the_files_of_relay():
    policy = dict(rule.split(" ", 1) for rule in HEADERS["Content-Security-Policy"].split("; "))
    assert policy.pop("default-src") == "'none'"
    allowed = {name for name, sources in policy.items() if sources == "'self'"}
    assert allowed == {"script-src", "style-src", "connect-src", "img-src"}
    assert {sources for name, sources in policy.items() if name not in allowed} == {"'none'"}
    assert {"base-uri", "form-action", "frame-ancestors"} <= policy.keys()


def test_the_page_loads_its_own_files_only_and_by_relative_addresses():
    """So that it also works behind a proxy that adds a prefix to the path."""
    text = content("/")[0].decode()
    loaded = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert {f"/{name}" for name in loaded if "." in name and not name.endswith(".json")} == FILES.keys() - {"/"}
    assert not [name for name in loaded if ":" in name or name.startswith("/")]
    assert not re.search(r"<style|\son\w+=|\sstyle=|<script>", text), "the policy would reject it"


def test_the_script_writes_text_and_no_markup():
    script = content("/page.js")[0].decode()
    assert "textContent" in script
    for name in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "localStorage",
    ):
        assert name not in script
