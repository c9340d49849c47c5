"""All objects' statuses in one go. Called by `reconcile`."""

from tollway_operator.builders.desired import Desired
from tollway_operator.observed import Observed
from tollway_operator.status.access import judge_key, judge_plan
from tollway_operator.status.conditions import Judgement, Outcome
from tollway_operator.status.models import judge_model


def judge(observed: Observed, desired: Desired, outcome: Outcome) -> tuple[Judgement, ...]:
    """Models, then plans, then keys, each oldest first."""
    keys: dict[str, int] = {}
    accounts: dict[str, set[str]] = {}
    growing: set[str] = set()  # plans of keys whose Secret is being made: counted afterwards, not one by one
    for view in desired.views.keys:
        for entry in view.entries[:1]:
            keys[entry.plan] = keys.get(entry.plan, 0) + 1
            accounts.setdefault(entry.plan, set()).add(entry.account)
        if view.secret_missing and view.parsed.resource and view.parsed.raw.key not in outcome.key_errors:
            growing.add(view.parsed.resource.plan)
    plans = {view.parsed.full_name: view.entry for view in desired.views.plans}
    judged = [judge_model(view, observed, desired, outcome) for view in desired.views.models]
    for plan in desired.views.plans:
        name = plan.parsed.full_name
        users = None if name in growing else (keys.get(name, 0), len(accounts.get(name, ())))
        judged.append(judge_plan(plan, users, observed, outcome))
    for key in desired.views.keys:
        plan_entry = plans.get(key.parsed.resource.plan) if key.parsed.resource else None
        judged.append(judge_key(key, plan_entry, observed, outcome))
    return tuple(judged)
