"""What survives: gateways under load while they are killed and stopped and their database fails in every way we know.

    python tests/bench/faults.py [--minutes 5] [--seed 1] [--stores sqlite,postgresql] [--clients 9]

Two gateways, clients that ask for whole answers, streams and the same POST again, accounts without limits, with credits
that run out and are granted, and with narrow limits. Each kind of fault comes at least once, then random ones at random
moments. Afterwards every answer is compared with the books, `tollway usage verify` runs, and a table in Markdown is
printed; exit status 1 if anything differs. A disk is filled up where this may mount one (root).
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.fault_suite import Outcome, suite


def tables(outcomes: list[Outcome]) -> str:
    return f"{_kinds(outcomes)}\n\n{_figures(outcomes)}"


def _kinds(outcomes: list[Outcome]) -> str:
    lines = ["| store | fault | times | 503 | told after | most | recovered after | most |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|---:|")
    for each in outcomes:
        for kind, windows in sorted(each.windows.items()):
            told = each.told.get(kind, [])
            spreads = f"{_spread(told)} | {_spread(each.recovery.get(kind, []))}"
            lines.append(f"| {each.store} | {kind} | {len(windows)} | {len(told)} | {spreads} |")
        lines += [f"| {each.store} | {kind} | not tried: {why} | | | | | |" for kind, why in each.untried.items()]
    return "\n".join(lines)


def _figures(outcomes: list[Outcome]) -> str:
    lines = [f"| | {' | '.join(each.store for each in outcomes)} |", f"|---|{'---:|' * len(outcomes)}"]
    for what, value in (
        ("faults", lambda each: sum(len(windows) for windows in each.windows.values())),
        ("requests sent", lambda each: each.findings.requests),
        ("answered, whole or to `[DONE]`", lambda each: each.findings.answers),
        ("refused by a limit", lambda each: each.findings.refused),
        ("told `ledger_unavailable`", lambda each: each.findings.unavailable),
        ("no answer: the gateway died", lambda each: each.findings.unanswered),
        ("streams cut, or left by their client", lambda each: each.findings.streams_cut),
        ("most tokens that such a stream was charged beyond what arrived", lambda each: each.findings.most_beyond),
        ("charges compared", lambda each: each.findings.compared),
        ("charged, and not answered whole", lambda each: each.findings.charged_unanswered),
        ("looks at every limit meanwhile", lambda each: each.looks.number),
        ("**differences**", lambda each: len(each.differences)),
        ("holds past their deadline", lambda each: len(each.looks.late_holds)),
        ("holds open at the end", lambda each: each.open_holds),
    ):
        lines.append(f"| {what} | {' | '.join(f'{value(each):,}' for each in outcomes)} |")
    return "\n".join(lines)


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.1f} | {max(seconds):.1f}" if seconds else "|"


async def run(options: argparse.Namespace) -> list[Outcome]:
    outcomes = []
    for store in options.stores.split(","):
        with tempfile.TemporaryDirectory(prefix="tollway-faults-") as folder:
            async with suite(store, Path(folder), options.seed) as here:
                outcome = await here.run(seconds=options.minutes * 60, clients=options.clients)
        outcomes.append(outcome)
        for problem in outcome.differences:
            print(f"{store}: {problem}", flush=True)
        if options.logs:
            print(outcome.logs)
        print(f"{store}: {outcome.verified}", flush=True)
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stores", default="sqlite,postgresql")
    parser.add_argument("--clients", type=int, default=9)
    parser.add_argument("--logs", action="store_true", help="print what the gateways said")
    options = parser.parse_args()
    begun, load = time.monotonic(), os.getloadavg()[0]
    outcomes = asyncio.run(run(options))
    print(
        f"\n{os.cpu_count()} cores, load {load:.1f} at the beginning and {os.getloadavg()[0]:.1f} at the end,"
        f" seed {options.seed}, {(time.monotonic() - begun) / 60:.1f} minutes in all\n\n{tables(outcomes)}"
    )
    return int(any(each.differences for each in outcomes))


if __name__ == "__main__":
    sys.exit(main())
