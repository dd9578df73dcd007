"""Give the files of a release what its build leaves out: ``pack.py WHEEL SBOM`` and ``pack.py SDIST``.

A wheel gets its bill of materials (PEP 770). A source release gets the times of the commit, no owners and the order of
names, so that two builds of one commit are equal; setuptools does that for wheels only. ``SOURCE_DATE_EPOCH`` has the
time (https://reproducible-builds.org/specs/source-date-epoch/). Both get a description that an index can show.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

EPOCH = int(os.environ["SOURCE_DATE_EPOCH"])

_RELATIVE = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)]+)\)")  # a link or a picture


def for_an_index(metadata: str) -> str:
    """Return the metadata with a README that can be read elsewhere: relative links would lead nowhere.

    They lead to this version at the project's home, which is the ``Source`` of its URLs. While it has none, the words
    of the links stay, and the pictures go.
    """
    head, _, text = metadata.partition("\n\n")
    fields = dict(line.split(": ", 1) for line in head.splitlines() if line.startswith(("Version: ", "Project-URL: S")))
    home = fields.get("Project-URL", "").removeprefix("Source, ")

    def settled(found: re.Match[str]) -> str:
        picture, words, path = found.groups()
        if not home:
            return "" if picture else words
        return f"{picture}[{words}]({home}/{'raw' if picture else 'blob'}/v{fields['Version']}/{path})"

    return f"{head}\n\n{_RELATIVE.sub(settled, text)}"


def with_sbom(wheel: Path, sbom: Path) -> None:
    """Put a bill of materials into a wheel, and into its RECORD."""
    with tempfile.TemporaryDirectory() as folder:
        tool = [sys.executable, "-m", "wheel"]
        subprocess.run([*tool, "unpack", "--dest", folder, str(wheel)], check=True, stdout=subprocess.DEVNULL)
        (unpacked,) = Path(folder).iterdir()
        (info,) = unpacked.glob("*.dist-info")
        (info / "METADATA").write_text(for_an_index((info / "METADATA").read_text()))
        (info / "sboms").mkdir()
        shutil.copy(sbom, info / "sboms" / "relay-toolkit.cdx.json")
        subprocess.run(
            [*tool, "pack", "--dest-dir", str(wheel.parent), str(unpacked)], check=True, stdout=subprocess.DEVNULL
        )


def settled(sdist: Path) -> None:
    """Write a source release again, with nothing in it that differs from one build to the next."""
    with tarfile.open(sdist) as archive:
        members = sorted(archive.getmembers(), key=lambda member: member.name)
        contents = {member.name: archive.extractfile(member).read() for member in members if member.isfile()}  # type: ignore[union-attr]
    for member in members:
        if member.name.endswith("/PKG-INFO"):
            contents[member.name] = for_an_index(contents[member.name].decode()).encode()
            member.size = len(contents[member.name])
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            member.mtime, member.uid, member.gid, member.uname, member.gname = EPOCH, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            archive.addfile(member, io.BytesIO(contents[member.name]) if member.isfile() else None)
    sdist.write_bytes(gzip.compress(packed.getvalue(), mtime=EPOCH))


if __name__ == "__main__":
    given = [Path(word) for word in sys.argv[1:]]
    if given[0].suffix == ".whl":
        with_sbom(*given)
    else:
        settled(*given)
