"""``python -m benchmarks``: measure, print, keep the results of whole tables, and write the pages about them."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

from .loads.tcp import Lab
from .machine import MeasurementError, UnavailableError, describe, raise_limit
from .peers.tcp import PACKAGES, PEERS, VERSIONS
from .report import Results, figures, page, text
from .rows.tcp import ROWS, TABLES

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
FIGURES = PAGE.parent / "reference" / "figures.md"


def names(known: Iterable[str], groups: dict[str, list[str]]) -> Callable[[str], list[str]]:
    """An option that takes names out of a table, or of groups of them, separated by commas."""

    def parse(given: str) -> list[str]:
        chosen = [name for word in given.split(",") for name in groups.get(word, [word])]
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join([*groups, *known])}")
        return chosen

    return parse


def positive(given: str) -> int:
    """An option that takes a whole number above 0."""
    if not given.isdecimal() or int(given) == 0:
        raise argparse.ArgumentTypeError(f"{given}: expected a whole number above 0")
    return int(given)


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure relay beside its peers. Whole tables go into benchmarks/results, docs/performance.md and "
        "docs/reference/figures.md.",
        epilog="example: python -m benchmarks --rows bulk-1,requests --peers relay,haproxy,c --rounds 1",
    )
    tables = {table: [name for name, row in ROWS.items() if row.table == table] for table in TABLES}
    tables["growth"] = [name for name, row in ROWS.items() if row.size is not None]
    rows = f"{', '.join(ROWS)}; or those of a table: {', '.join(tables)}"
    parser.add_argument("--rows", type=names(ROWS, tables), default=list(ROWS), metavar="NAME,…", help=rows)
    parser.add_argument("--peers", type=names(PEERS, {}), default=list(PEERS), metavar="NAME,…", help=", ".join(PEERS))
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="of every row (default 3)")
    parser.add_argument("--seconds", type=positive, default=3, metavar="S", help="of load in a measurement (default 3)")
    parser.add_argument("--page", action="store_true", help="write the pages from the kept results; measure nothing")
    return parser.parse_args()


def measure(lab: Lab, row: str, peer: str, results: Results) -> None:
    """One measurement; one that fails leaves its reason."""
    print(f"{row:15} {peer:15} ", end="", flush=True)
    try:
        sample = ROWS[row].measure(lab, peer)
    except UnavailableError as error:
        results.missing(row, peer, f"not available: {error}")
        print(f"not available: {error}", flush=True)
    except (MeasurementError, OSError) as error:
        results.missing(row, peer, f"failed: {error}")
        print(f"FAILED: {error}", flush=True)
    else:
        results.add(row, peer, sample)
        shown = [f"{m.title} {sample[m.key] * m.scale:,.2f}" for m in ROWS[row].metrics if m.key in sample]
        print(" · ".join(shown), flush=True)


def run(chosen: argparse.Namespace) -> Results:
    """All rounds of all rows, the peers of a row in turn within each round."""
    results = Results.begin(
        time.strftime("%Y-%m-%d %H:%M"), describe(VERSIONS, PACKAGES), chosen.rounds, chosen.seconds
    )
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as directory:
        with closing(Lab(Path(directory), chosen.seconds)) as lab:
            for row in chosen.rows:
                for _ in range(chosen.rounds):
                    for peer in ROWS[row].peers:
                        if peer in chosen.peers:
                            measure(lab, row, peer, results)
    return results


def keep(results: Results) -> None:
    """Write the figures, the report, the pictures and the pages."""
    from .picture import draw

    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "latest.json").write_text(json.dumps(results.data, indent=1, ensure_ascii=False) + "\n")
    (RESULTS / "latest.txt").write_text(text(results))
    draw(results, PAGE.parent / "performance", RESULTS)
    PAGE.write_text(page(results, PAGE.read_text()))
    FIGURES.write_text(figures(results))


def main() -> int:
    chosen = options()
    if chosen.page:
        keep(Results.load(RESULTS / "latest.json"))
        return 0
    raise_limit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the programs under test are ended too
    results = run(chosen)
    print()
    print(text(results), end="")
    whole = {table for table in TABLES if all(row in chosen.rows for row in ROWS if ROWS[row].table == table)}
    if whole and chosen.peers == list(PEERS):
        kept = RESULTS / "latest.json"
        keep(Results.load(kept).merged(whole, results) if kept.exists() and whole != set(TABLES) else results)
    return 1 if results.failed else 0


if __name__ == "__main__":
    sys.exit(main())
