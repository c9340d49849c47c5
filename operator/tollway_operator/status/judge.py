"""All objects' statuses in one go. Called by `reconcile`."""

from collections import Counter
from collections.abc import Mapping
from operator import attrgetter, itemgetter

from tollway_operator.builders.desired import Desired
from tollway_operator.builders.views import KeyView, ModelView, uid_of
from tollway_operator.memo import Memo
from tollway_operator.observed import Observed
from tollway_operator.platform import PoolStatus
from tollway_operator.status.access import Bounds, bounds, judge_key, judge_plan
from tollway_operator.status.conditions import Judgement, Outcome
from tollway_operator.status.models import Course, judge_model
from tollway_serving.ledger.port import AccountUsage


def judge(observed: Observed, desired: Desired, outcome: Outcome, memo: Memo | None = None) -> tuple[Judgement, ...]:
    """Models, then plans, then keys, each oldest first. `memo`: what earlier calls worked out."""
    memo = memo or Memo()
    models, plans, keys = desired.views.models, desired.views.plans, desired.views.keys
    names = tuple(view.parsed.full_name for view in plans)
    users = memo.once(_users, keys, outcome.key_errors)
    limits = memo.once(_by_name, names, memo.each(bounds, names, plans))
    return (
        *memo.each(
            judge_model,
            map(uid_of, models),
            models,
            [_course(view, observed, desired, outcome) for view in models],
            common=(outcome.reach, observed.platform.upgrade if observed.platform is not None else ""),
            now=observed.now,
        ),
        *memo.each(
            judge_plan,
            map(uid_of, plans),
            plans,
            [users.get(name, (0, 0)) for name in names],
            common=(outcome.reach,),
            now=observed.now,
        ),
        *memo.each(
            judge_key,
            map(uid_of, keys),
            keys,
            memo.once(_limits, keys, limits),
            memo.once(_usage, keys, observed.usage),
            memo.once(_errors, keys, outcome.key_errors),
            memo.once(_foreign, keys, outcome.not_ours),
            common=(outcome.reach,),
            now=observed.now,
        ),
    )


# Columns for the memo


def _by_name(names: tuple[str, ...], limits: tuple[Bounds | None, ...]) -> Mapping[str, Bounds | None]:
    return dict(zip(names, limits, strict=True))


def _limits(keys: tuple[KeyView, ...], limits: Mapping[str, Bounds | None]) -> tuple[Bounds | None, ...]:
    return tuple(map(limits.get, map(attrgetter("plan"), keys)))


def _usage(keys: tuple[KeyView, ...], usage: Mapping[str, AccountUsage]) -> tuple[AccountUsage | None, ...]:
    return tuple(map(usage.get, map(attrgetter("account"), keys))) if usage else (None,) * len(keys)


def _errors(keys: tuple[KeyView, ...], errors: Mapping[str, str]) -> tuple[str | None, ...]:
    return tuple(map(errors.get, map(uid_of, keys))) if errors else (None,) * len(keys)


def _foreign(keys: tuple[KeyView, ...], not_ours: frozenset[str]) -> tuple[bool, ...]:
    return tuple(map(not_ours.__contains__, map(uid_of, keys))) if not_ours else (False,) * len(keys)


def _course(view: ModelView, observed: Observed, desired: Desired, outcome: Outcome) -> Course:
    name, rollout = view.app, desired.rollout
    if name is None:
        return Course()
    good = rollout.memory.good.get(name)
    pool = observed.platform.pools.get(view.pool.name) if observed.platform and view.pool else None
    return Course(
        app=desired.apps.get(name),
        there=observed.ray.apps.get(name) if observed.ray else None,
        wanted=rollout.configs.get(name),
        back=rollout.rolled_back.get(name),
        failure=rollout.failures.get(name),
        serving=good.generation if good is not None else None,
        refusal=outcome.refused_apps.get(name, ""),
        pool=pool or PoolStatus(),
    )


def _users(keys: tuple[KeyView, ...], errors: Mapping[str, str]) -> Mapping[str, tuple[int, int] | None]:
    """By plan, how many ApiKeys are on it, and how many accounts these have. None while Secrets are being made of keys
    on it: they are counted afterwards, not one by one."""
    pairs = [*filter(None, map(attrgetter("user"), keys))]
    first = itemgetter(0)
    counts, accounts = Counter(map(first, pairs)), Counter(map(first, set(pairs)))
    users: dict[str, tuple[int, int] | None] = {plan: (count, accounts[plan]) for plan, count in counts.items()}
    for view in filter(attrgetter("secret_missing"), keys):
        if view.parsed.raw.uid not in errors:
            users[view.plan] = None
    return users
