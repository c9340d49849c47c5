"""What an account has used and has left, by the limits of its plan: for ApiKey statuses."""

from collections.abc import Mapping

import sqlalchemy as sa

from tollway_serving.contract.catalogue import Limits, PlanEntry
from tollway_serving.contract.units import METERS
from tollway_serving.ledger import schema
from tollway_serving.ledger.admit import Scope, credits_left, quota_used
from tollway_serving.ledger.database import now_ms
from tollway_serving.ledger.periods import period_bounds
from tollway_serving.ledger.port import AccountUsage
from tollway_serving.ledger.state import State, account_subject, decode, month_used


def account_usage(state: State, limits: Limits, now: int, topup_micro: int) -> AccountUsage:
    """Settled numbers of the current month, `topup_micro` of it paid by top-ups; what is left takes off what calls in
    flight hold."""
    return AccountUsage(
        period_end=period_bounds("Month", now)[1] // 1000,
        credits_used_micro=month_used(state, now)[0] + topup_micro,
        credits_left_micro=credits_left((Scope(state, limits),), now),
        quotas_used={q.name: quota_used(state, q, now)[0] // METERS[q.meter][1] for q in limits.quotas},
    )


def usage(connection: sa.Connection, accounts: Mapping[str, str]) -> dict[str, AccountUsage]:
    """{account: plan name} -> usage; an account without requests yet has used nothing, a plan that is not published
    limits nothing."""
    now = now_ms(connection)
    table = schema.catalogue
    bodies = connection.execute(sa.select(table.c.id, table.c.body).where(table.c.kind == "plan", table.c.deleted == 0))
    limits = {name: PlanEntry.model_validate_json(body).limits for name, body in bodies}
    wanted = {account_subject(account): account for account in accounts}
    states: dict[str, State] = {}
    names = list(wanted)
    for start in range(0, len(names), 500):
        rows = connection.execute(
            sa.select(schema.subjects.c.id, schema.subjects.c.state).where(
                schema.subjects.c.id.in_(names[start : start + 500])
            )
        )
        states.update({wanted[name]: decode(text) for name, text in rows})
    topups = _topups(connection, [account for account, state in states.items() if state.topup[1]], now)
    return {
        account: account_usage(states.get(account, State()), limits.get(plan, Limits()), now, topups.get(account, 0))
        for account, plan in accounts.items()
    }


def _topups(connection: sa.Connection, accounts: list[str], now: int) -> dict[str, int]:
    """What top-ups paid in the current month; a state has only the sum of all months."""
    start, end = period_bounds("Month", now)
    table, found = schema.rollups, {}
    for first in range(0, len(accounts), 500):
        rows = connection.execute(
            sa.select(table.c.account, sa.func.sum(table.c.topup_micro))
            .where(table.c.account.in_(accounts[first : first + 500]))
            .where(table.c.quarter_ms >= start, table.c.quarter_ms < end)
            .group_by(table.c.account)
        )
        found.update({account: int(micro) for account, micro in rows})
    return found
