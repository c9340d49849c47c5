"""Real gateways under load and some faults at random moments: nothing is lost, nothing twice, no limit passed."""

import itertools
import os
import statistics
from pathlib import Path

import pytest
from support.fault_suite import suite

LIMIT_S = 2.0
SLACK_S = 1.0  # a busy test machine's
_seeds = itertools.count(int(os.environ.get("TOLLWAY_TEST_SEED", "1")))


@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
async def test_faults_under_load(store: str, tmp_path: Path) -> None:
    """All kinds, and for minutes: tests/bench/faults.py."""
    async with suite(store, tmp_path, next(_seeds)) as here:
        outcome = await here.run(seconds=0, clients=6)
    assert outcome.differences == [], outcome.logs
    assert (outcome.open_holds, outcome.looks.late_holds) == (0, set())
    assert outcome.findings.answers > 20
    assert outcome.findings.streams_cut > 0
    assert outcome.looks.number > 0
    told = [seconds for waits in outcome.told.values() for seconds in waits]
    assert statistics.median(told) < LIMIT_S + SLACK_S, outcome.told
    print({kind: len(windows) for kind, windows in outcome.windows.items()}, outcome.untried)  # shown with -rP
