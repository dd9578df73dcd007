"""Search inputs that break a parser: ``python -m tests.torture.fuzz --minutes 5 addresses relay_toml``.

Atheris, libFuzzer for Python, keeps each input that reaches something new; they stay in ``build/fuzz/TARGET`` for the
next time. Each target gets its share of the minutes, in a process of its own. A finding ends the search of its
target, and prints a traceback and a file, with which ``--input FILE`` runs the target again.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .targets import NAMES, load

HERE = Path(__file__).parent
KEPT = Path("build/fuzz")
SEEDS = HERE / "seeds"
_IN_MEMORY = "/dev/shm"  # where the files of inputs are
_LONGEST_RUN = 10  # seconds that one input may take, with the tracing
_MEMORY = 1024  # MiB of the process
_SHOWN = 6000  # characters of a finding
_LONGEST_INPUT = 16384  # bytes
_REACHED = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)")
_NOISE = re.compile(r"^(?:INFO|WARNING|#\d).*\n", re.MULTILINE)
_RUNS = re.compile(r"stat::number_of_executed_units: (\d+)")

sys.path.append(str(HERE.parents[1] / "support"))


def fuzz(name: str, options: list[str]) -> None:
    """Run one target in this process, which then ends."""
    import atheris

    with atheris.instrument_imports(include=["relay"]):
        target = load(name)
    atheris.Setup([sys.argv[0], *options], target)
    atheris.Fuzz()


def search(name: str, seconds: float) -> int:
    """Run one target in a process of its own; print what it has reached, and return the exit status."""
    folder = KEPT / name
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={max(1, round(seconds))}",
        f"-timeout={_LONGEST_RUN}",
        f"-rss_limit_mb={_MEMORY}",
        f"-max_len={_LONGEST_INPUT}",
        f"-artifact_prefix={folder}/finding-",
        "-print_final_stats=1",
    ]
    argv = [sys.executable, "-m", __spec__.parent, "--run", name, *options, str(corpus), str(SEEDS / name)]
    begun, before = time.monotonic(), _cpu()
    last = ""
    # libFuzzer ends its process without cleaning up.
    in_memory = _IN_MEMORY if os.path.isdir(_IN_MEMORY) else None
    with open(folder / "log", "w+b") as log, tempfile.TemporaryDirectory(dir=in_memory) as temporary:
        environment = {**os.environ, "TMPDIR": temporary}
        status = subprocess.run(argv, stdout=log, stderr=log, env=environment, check=False).returncode
        log.seek(0)
        last = log.read().decode("utf-8", "replace")
    if status:
        print(f"{name}: a finding; again: {sys.executable} -m {__spec__.parent} --input FILE {name}")
        print(_NOISE.sub("", last)[-_SHOWN:])
        return 1
    reached, runs = _REACHED.findall(last), _RUNS.findall(last)
    edges, features, inputs = reached[-1] if reached else ("0", "0", "0")
    took, cpu = (time.monotonic() - begun) / 60, (_cpu() - before) / 60
    print(
        f"{name}: {runs[-1] if runs else 0} inputs, {edges} edges, {features} features by {inputs} kept inputs; "
        f"{took:.1f} minutes, {cpu:.1f} of CPU",
        flush=True,
    )
    return 0


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Search until the time is over; return the exit status."""
    if sys.argv[1:2] == ["--run"]:
        fuzz(sys.argv[2], sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all targets together")
    parser.add_argument("--input", help="run the targets with this file once")
    parser.add_argument("targets", nargs="*", metavar="target", help=f"some of {', '.join(NAMES)}")
    given = parser.parse_args()
    if unknown := set(given.targets) - set(NAMES):
        parser.error(f"unknown target {min(unknown)}; known are {', '.join(NAMES)}")
    chosen = given.targets or NAMES
    if given.input:
        for name in chosen:
            load(name)(Path(given.input).read_bytes())
        return 0
    return max(search(name, given.minutes * 60 / len(chosen)) for name in chosen)


if __name__ == "__main__":
    sys.exit(main())
