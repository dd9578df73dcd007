"""Write the root file system of the image, in the build stage of the Containerfile: Python, relay and what they need.

``python3 rootfs.py FOLDER`` copies the files of some Debian packages, /opt/relay, and a list of all that is in it
(CycloneDX, https://cyclonedx.org/specification/overview/).
"""

from __future__ import annotations

import compileall
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = [
    "base-files",
    "ca-certificates",
    "libbz2-1.0",
    "libc6",
    "libcrypt1",
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "liblzma5",
    "libpython3.13-minimal",
    "libpython3.13-stdlib",
    "libssl3t64",
    "libstdc++6",
    "libzstd1",
    "media-types",
    "netbase",
    "python3-minimal",
    "python3.13-minimal",
    "zlib1g",
]
LEFT_OUT = re.compile(
    r"/usr/share/(?!doc/[^/]+/copyright$|ca-certificates)|/usr/lib/python3/|/usr/lib/python3\.13/(ensurepip|lib2to3|idlelib|"
    r"pydoc_data)/|/usr/lib/[^/]+/(gconv|perl|audit)/|/usr/lib/(?!python3|x86_64|aarch64|os-release|ssl)|"
    r"/usr/s?bin/(?!python3)|/s?bin/|/etc/(?!ssl|debian_version|os-release|mime|protocols|services|rpc|ethertypes)|"
    r"/var/|/usr/(games|include|src)"
)
USER = 65532
EMPTY = {"run/relay": 0o700, "var/lib/relay": 0o700, "etc/relay": 0o755, "tmp": 0o1777, "proc": 0o755, "dev": 0o755}
FILES = {
    "etc/passwd": f"relay:x:{USER}:{USER}::/var/lib/relay:/nonexistent\n",
    "etc/group": f"relay:x:{USER}:\n",
    "etc/nsswitch.conf": "hosts: files dns\nservices: files\nprotocols: files\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
}
FORMAT = "${Package} ${Version} ${Architecture}"


def output(*words: str) -> str:
    """Return what a program prints."""
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def copy(path: Path, root: Path) -> None:
    """Copy a file, a link, or the place of a directory."""
    to = root / str(path).lstrip("/")
    if path.is_symlink():
        to.parent.mkdir(parents=True, exist_ok=True)
        if not to.is_symlink() and not to.exists():
            to.symlink_to(os.readlink(path))
    elif path.is_file():
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, to)


def components() -> list[dict[str, str]]:
    """Return what is in the image: Debian's packages, then those of Python."""
    found = []
    for package in PACKAGES:
        name, version, architecture = output("dpkg-query", "--show", f"--showformat={FORMAT}", package).split()
        purl = f"pkg:deb/debian/{name}@{version}?arch={architecture}"
        found.append({"type": "library", "name": name, "version": version, "purl": purl})
    [site] = Path("/opt/relay/lib").glob("python3*/site-packages")
    for one in sorted(importlib.metadata.distributions(path=[str(site)]), key=lambda one: one.name.lower()):
        purl = f"pkg:pypi/{one.name.lower()}@{one.version}"
        found.append({"type": "library", "name": one.name, "version": one.version, "purl": purl})
    return found


def main(folder: str) -> None:
    """Write it."""
    root = Path(folder)
    for name in ("bin", "lib", "lib64", "sbin"):  # as in Debian: they are parts of /usr
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in PACKAGES:
        for line in output("dpkg", "--listfiles", package).splitlines():
            if not LEFT_OUT.match(line):
                copy(Path(line), root)
    copy(Path("/etc/ssl/certs/ca-certificates.crt"), root)
    shutil.copytree("/opt/relay", root / "opt/relay", symlinks=True)
    compileall.compile_dir(root / "usr/lib/python3.13", stripdir=str(root), quiet=1)
    for name, mode in EMPTY.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name).chmod(mode)
    for name in ("run/relay", "var/lib/relay"):
        os.chown(root / name, USER, USER)
    for name, text in FILES.items():
        (root / name).write_text(text)
    bill = {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "components": components()}
    (root / "usr/share/relay").mkdir(parents=True, exist_ok=True)
    (root / "usr/share/relay/sbom.cdx.json").write_text(json.dumps(bill, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
