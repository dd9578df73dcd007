"""``deploy/``: the manifests have the right schemas, the restricted profile, and tunnels that relay accepts."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from command_rig import run
from helpers import WAIT

from relay.cli.service.unit import Sandbox, Unit, text_of
from relay.operations.metric_families import FAMILIES

ROOT = Path(__file__).parent.parent
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("deployment", "sidecar", "daemonset")
VERSION = "1.31"  # of the schemas
SYSTEMD = 252  # a unit for this version is right for newer ones, too
TOKEN = "status-token"


def load(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def resources(folder: Path) -> list[Path]:
    """The manifests of a kustomization, those of other ones that it names included."""
    [listed] = load(folder / "kustomization.yaml")
    found: list[Path] = []
    for name in listed["resources"]:
        path = (folder / name).resolve()
        found += resources(path) if path.is_dir() else [path]
    return found


def objects(overlay: str) -> dict[str, dict[str, Any]]:
    """The objects of an overlay by kind; nothing in them is patched."""
    found = [one for path in resources(KUBERNETES / "overlays" / overlay) for one in load(path)]
    by_kind = {one["kind"]: one for one in found}
    assert len(by_kind) == len(found)
    return by_kind


def pod_of(overlay: str) -> dict[str, Any]:
    every = objects(overlay)
    pod: dict[str, Any] = every["DaemonSet" if overlay == "daemonset" else "Deployment"]["spec"]["template"]["spec"]
    return pod


def relay_in(pod: dict[str, Any]) -> dict[str, Any]:
    [found] = [one for one in (*pod["containers"], *pod["initContainers"]) if one["name"] == "relay"]
    return dict(found)


def test_every_manifest_is_in_an_overlay() -> None:
    used = {path for overlay in OVERLAYS for path in resources(KUBERNETES / "overlays" / overlay)}
    assert {path for path in KUBERNETES.rglob("*.yaml") if path.name != "kustomization.yaml"} == used


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_manifests_have_the_schemas_of_kubernetes(overlay: str) -> None:
    for kind, one in objects(overlay).items():
        if kind != "ServiceMonitor":  # of an operator, which brings its own schema
            kubernetes_validate.validate(one, VERSION, strict=True)
    if kubectl := shutil.which("kubectl"):  # Debian's has another name than others, so the tests install none
        built = subprocess.run(
            [kubectl, "kustomize", KUBERNETES / "overlays" / overlay], capture_output=True, timeout=WAIT, check=True
        )
        assert {one["kind"] for one in yaml.safe_load_all(built.stdout)} == {*objects(overlay), "ConfigMap"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_pods_meet_the_restricted_profile(overlay: str) -> None:
    """Source: the Pod Security Standards, "Restricted"."""
    pod = pod_of(overlay)
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod["automountServiceAccountToken"]
    assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & pod.keys()
    assert all({"configMap", "secret", "emptyDir"} & volume.keys() for volume in pod["volumes"])
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in (*pod["containers"], *pod["initContainers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert container["resources"]["requests"] and container["resources"]["limits"]["memory"]
        assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes
        assert all(port["containerPort"] >= 1024 for port in container.get("ports", ()))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_and_the_end_are_right(overlay: str) -> None:
    pod = pod_of(overlay)
    container = relay_in(pod)
    control = ["--control", container["args"][-1]]
    probes = {name: container[f"{name}Probe"]["exec"]["command"] for name in ("startup", "readiness", "liveness")}
    assert probes["liveness"] == ["relay", "ctl", "live", *control]
    assert probes["startup"] == probes["readiness"] == ["relay", "ctl", "ready", *control]
    seconds = int(re.search(r"sleep\((\d+)\)", container["lifecycle"]["preStop"]["exec"]["command"][-1])[1])  # type: ignore[index]
    drain = tunnels(overlay)["defaults"]["drain"]
    assert pod["terminationGracePeriodSeconds"] == drain + 15 > drain + seconds
    if overlay == "sidecar":
        assert container.pop("restartPolicy") == "Always"
    container.pop("ports", None)
    same = relay_in(pod_of("deployment"))
    same.pop("ports")
    assert container == same, "the overlays differ in what surrounds relay, not in relay"
    assert pod["initContainers"][0] == pod_of("deployment")["initContainers"][0]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_ports_and_names_fit_together(overlay: str) -> None:
    every = objects(overlay)
    workload = every["DaemonSet" if overlay == "daemonset" else "Deployment"]
    labels = workload["spec"]["template"]["metadata"]["labels"]
    assert workload["spec"]["selector"]["matchLabels"] == labels
    pod = pod_of(overlay)
    sources = {volume["name"]: volume for volume in pod["volumes"]}
    assert sources["config"]["configMap"]["name"] == "relay"
    assert sources["secret"]["secret"]["secretName"] == every["Secret"]["metadata"]["name"]
    assert pod["serviceAccountName"] == every["ServiceAccount"]["metadata"]["name"]
    if overlay == "sidecar":
        return
    service, monitor = every["Service"], every["ServiceMonitor"]["spec"]
    assert service["spec"]["selector"] == labels
    assert monitor["selector"]["matchLabels"] == service["metadata"]["labels"]
    ports = {port["name"]: port["containerPort"] for port in relay_in(pod)["ports"]}
    assert {port["targetPort"]: port["port"] for port in service["spec"]["ports"]} == ports
    [endpoint] = monitor["endpoints"]
    assert endpoint["port"] in ports
    credentials = endpoint["authorization"]["credentials"]
    assert credentials == {"name": every["Secret"]["metadata"]["name"], "key": TOKEN}
    found = tunnels(overlay)
    assert ports["status"] == int(found["status"].rpartition(":")[2])
    assert {f"0.0.0.0:{ports[name]}" for name in found["tunnels"]} == {
        tunnel["listen"] for tunnel in found["tunnels"].values()
    }


def test_the_image_is_that_of_the_manifests() -> None:
    text = (ROOT / "Containerfile").read_text()
    pod = pod_of("deployment")
    assert "USER {0}:{0}".format(pod["securityContext"]["runAsUser"]) in text
    assert 'ENTRYPOINT ["relay"]' in text and 'CMD ["relay", "ctl", "live"]' in text
    image = f"localhost/relay:{version('relay-toolkit')}"
    assert {one["image"] for one in (*pod["containers"], *pod["initContainers"])} == {image}
    for name in ("container/build", "container/try", "nomad/relay.nomad.hcl"):
        assert image in (ROOT / "deploy" / name).read_text()


def test_the_number_of_pods_follows_a_metric_that_exists() -> None:
    every = objects("deployment")
    scaler = every["HorizontalPodAutoscaler"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == every["Deployment"]["metadata"]["name"]
    [metric] = scaler["metrics"]
    assert metric["pods"]["metric"]["name"] in {family.name for family in FAMILIES}
    assert scaler["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 3600
    assert "replicas" not in every["Deployment"]["spec"], "the scaler owns it"
    budget = every["PodDisruptionBudget"]["spec"]
    assert budget["selector"] == every["Deployment"]["spec"]["selector"]


def configuration(overlay: str) -> Path:
    own = KUBERNETES / "overlays" / overlay / "relay.toml"
    return own if own.exists() else KUBERNETES / "base" / "relay.toml"


def tunnels(overlay: str) -> dict[str, Any]:
    return tomllib.loads(configuration(overlay).read_text())


@pytest.mark.parametrize("overlay", ["deployment", "sidecar"])
def test_relay_accepts_the_tunnels_and_the_token_that_the_init_container_copies(overlay: str, tmp_path: Path) -> None:
    secret, keys = tmp_path / "secret", tmp_path / "keys"
    runtime = tmp_path / "runtime"
    for folder in (secret, keys, runtime):
        folder.mkdir()
    (secret / TOKEN).write_text(objects(overlay)["Secret"]["stringData"][TOKEN])
    (secret / "..data").mkdir()  # as Kubernetes has one
    python, *words = pod_of(overlay)["initContainers"][0]["command"]
    assert python == "python3"
    words[-1] = words[-1].replace("/run/secrets/relay", str(secret)).replace("/run/keys", str(keys))
    words[-1] = words[-1].replace("/run/relay", str(runtime))
    subprocess.run([sys.executable, *words], timeout=WAIT, check=True)
    assert [(one.name, stat.S_IMODE(one.stat().st_mode)) for one in keys.iterdir()] == [(TOKEN, 0o600)]
    control = Path(relay_in(pod_of(overlay))["args"][-1])
    made = runtime / control.parent.relative_to("/run/relay")
    assert stat.S_IMODE(made.stat().st_mode) == 0o700, "relay rejects a directory that others can write to"
    text = configuration(overlay).read_text()
    (tmp_path / "relay.toml").write_text(text.replace("/run/keys", str(keys)).replace("db.internal", "192.0.2.7"))
    done = run("check", str(tmp_path / "relay.toml"))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "user", "config", "home"),
    [
        ("relay.service", "", "/etc/relay/relay.toml", ""),
        ("relay-user.service", None, "/home/me/.config/relay/relay.toml", "/home/me"),
    ],
)
def test_the_units_are_those_that_relay_service_writes(name: str, user: str | None, config: str, home: str) -> None:
    unit = Unit(("/opt/relay/bin/relay",), config, user, home, SYSTEMD, Sandbox())
    comment, _, text = (ROOT / "deploy" / "systemd" / name).read_text().partition("\n")
    assert comment.startswith("# As relay service ")
    assert text == text_of(unit)


def test_the_sample_for_nomad_has_tunnels_that_relay_accepts(tmp_path: Path) -> None:
    text = (ROOT / "deploy" / "nomad" / "relay.nomad.hcl").read_text()
    found = re.search(r"<<TOML\n(.*?)^TOML$", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    (tmp_path / "relay.toml").write_text(found[1].replace("db.internal", "192.0.2.7"))
    assert run("check", str(tmp_path / "relay.toml")).returncode == 0
    assert f'kill_timeout = "{tomllib.loads(found[1])["defaults"]["drain"] + 15}s"' in text
    assert "max_kill_timeout" in text, "without it a client of Nomad kills relay after 30 s"
    assert re.search(r'^    shutdown_delay = "\d+s"$', text, re.MULTILINE), (
        "a file with no status server has none itself"
    )
