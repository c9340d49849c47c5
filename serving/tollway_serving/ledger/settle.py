"""How a hold ends: what is charged for it and who pays. Pure; called by `transaction` for every store."""

from collections.abc import Mapping

from tollway_serving.contract.units import UNITS, Unit, charge_micro
from tollway_serving.ledger.ops import Settle, SettleStatus
from tollway_serving.ledger.periods import period_keys
from tollway_serving.ledger.state import Charge, Hold, State

_UNITS = frozenset(UNITS)


def settle(account: State, hold: Hold, op: Settle) -> Charge:
    """The charge is the smaller of what was used and what was held; the rest is overrun. Raises ValueError for counts
    that are negative or of no known unit."""
    counts: dict[Unit, int] = {}
    for unit, count in op.counts.items():
        if unit not in _UNITS or count < 0:
            raise ValueError(f"count of {unit!r} is {count}")
        if count and unit != "requests":
            counts[unit] = count
    if op.status == "released":
        counts = {}
    requests = counts_as_request(op.status, counts)
    if requests:
        counts["requests"] = 1
    used = charge_micro(counts, hold.prices)
    micro = min(used, hold.micro)
    topup = 0
    if hold.monthly_limit is not None:
        settled, held = account.credits.get(period_keys(hold.created)[2], (0, 0))
        own = hold.micro - hold.topup
        # The month's credits are used before the top-ups, also those that other calls have freed meanwhile; a limit
        # that was lowered since takes nothing away from what this call had already been given.
        topup = micro - min(micro, max(own, hold.monthly_limit - settled - (held - own)))
    return Charge(counts=counts, micro=micro, overrun=used - micro, topup=topup, requests=requests)


def counts_as_request(status: SettleStatus, counts: Mapping[Unit, int]) -> int:
    """A successful request is one that was answered, or that its client left after something had been made of it."""
    if status != "cancelled":
        return int(status == "ok")
    return int(any(count for unit, count in counts.items() if unit not in ("requests", "input_tokens")))


def last_known(hold: Hold) -> Settle:
    """Closes a hold whose owner is gone: at its prompt and the output that was covered, never less than was sent."""
    counts = {unit: n for unit, n in hold.counts.items() if unit not in ("requests", "output_tokens")}
    if hold.covered_prompt is not None:
        counts["input_tokens"] = hold.covered_prompt
    if hold.covered_output:
        counts["output_tokens"] = hold.covered_output
    return Settle(
        charge_id=hold.charge_id,
        counts=counts,
        status="cancelled" if hold.covered_output else "error",
        http_status=500,
        error_code="owner_lost",
        estimated=True,
    )
