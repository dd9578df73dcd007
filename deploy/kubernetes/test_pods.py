"""The pods of the overlay ``deployment``, played by podman behind HAProxy: they are replaced, and no client notices.

``make image`` runs this with the image that it has built. podman is no kubelet: it knows no probes, no ``preStop`` and
no Service, so the shutdown delay of relay takes the place of ``preStop``, and pods have ports of the machine.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from fleet_rig import HAPROXY, NAMES, Fleet, Instance, lose_one, replace_all
from group_rig import letter
from helpers import Server

HERE = Path(__file__).parent
IMAGES = (HERE.parents[1] / "build" / "container").resolve()
TOKEN = "a-token-of-the-tests"
TIME = 300  # seconds for a call of podman on a busy machine

pytestmark = pytest.mark.skipif(not HAPROXY, reason="haproxy is not installed")


def podman(*arguments: str, environment: dict[str, str]) -> str:
    """Run podman with the storage of ``deploy/container/build``; return what it prints."""
    places = ["--root", IMAGES / "storage", "--runroot", IMAGES / "run"]
    options = ["--runtime", "runc", "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]
    done = subprocess.run(
        ["podman", *places, *options, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=TIME,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Pod(Instance):
    """A pod of the overlay.

    :param run: calls podman.
    """

    def __init__(self, run, *arguments):
        super().__init__(*arguments, **{'"status-token"': '"/run/keys/status-token"'})
        self._run = run
        self._pod = f"relay-{os.getpid()}-{self.name}"
        self.manifest = self.file.with_suffix(".yaml")
        self.manifest.write_text(yaml.safe_dump_all([self._config_map(), self._made()]))
        secret = yaml.safe_load((HERE / "base" / "secret.yaml").read_text())
        del secret["stringData"]  # podman knows only data, and takes them as they are
        secret["data"] = {"status-token": TOKEN}
        self.secret = self.file.with_suffix(".secret.yaml")
        self.secret.write_text(yaml.safe_dump(secret))

    def _config_map(self):
        data = {"relay.toml": self.file.read_text()}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": self._pod}, "data": data}

    def _made(self):
        """The pod as the Deployment has it, but for what podman needs on a machine of its own."""
        text = (HERE / "overlays" / "deployment" / "deployment.yaml").read_text()
        template = yaml.safe_load(text)["spec"]["template"]
        spec = template["spec"]
        spec["hostNetwork"] = True
        spec["restartPolicy"] = "Never"
        for container in spec["containers"]:
            del container["ports"]
        for one in (*spec["volumes"], *(one for some in self._containers(spec) for one in some["volumeMounts"])):
            one["name"] = f"{self._pod}-{one['name']}"  # volumes of an equal name are one volume, also of several pods
        for volume in spec["volumes"]:
            if "configMap" in volume:
                volume["configMap"]["name"] = self._pod
            if "secret" in volume:
                volume["secret"] |= {"secretName": self._pod, "optional": False}
        # podman 4.3 removes an init container of the default type while it still counts as running.
        kept = {"io.podman.annotations.init.container.type": "always"}
        metadata = {"name": self._pod, "labels": template["metadata"]["labels"], "annotations": kept}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}

    @staticmethod
    def _containers(spec):
        return (*spec["initContainers"], *spec["containers"])

    def start(self):
        self.remove()
        self._run("secret", "create", self._pod, str(self.secret))
        self._run("kube", "play", "--network", "host", str(self.manifest))

    def send(self, number):
        self._run("kill", "--signal", number.name, f"{self._pod}-relay")

    def wait(self):
        return int(self._run("wait", f"{self._pod}-relay"))

    def remove(self):
        """Remove what is there of it."""
        self._run("pod", "rm", "--force", "--ignore", self._pod)
        if self._pod in self._run("secret", "ls", "--format", "{{.Name}}").split():
            self._run("secret", "rm", self._pod)
        volumes = self._run("volume", "ls", "--format", "{{.Name}}").split()
        if ours := [name for name in volumes if name.startswith(self._pod)]:
            self._run("volume", "rm", *ours)


@pytest.fixture
def fleet(tmp_path):
    """Three pods, each with a server that sends its letter."""
    limits = tmp_path / "containers.conf"
    limits.write_text('[containers]\ndefault_ulimits = ["nofile=20000:20000", "nproc=2000:2000"]\n')
    run = functools.partial(podman, environment={"CONTAINERS_CONF": str(limits)})
    with contextlib.ExitStack() as stack:
        targets = []
        for which in NAMES.values():
            server = Server(letter(which))
            stack.callback(server.close)
            targets.append(server.address)

        def make(*arguments):
            made = Pod(run, *arguments)
            stack.callback(made.remove)
            return made

        yield Fleet(stack, tmp_path, make, targets)


def test_the_pods_are_replaced_and_no_client_is_lost(fleet):
    replace_all(fleet)


def test_a_pod_that_dies_ends_its_own_connections_only(fleet):
    lose_one(fleet)
