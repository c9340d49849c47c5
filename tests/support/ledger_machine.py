"""One Hypothesis state machine for the ledger's properties, run on the pure part and on both stores.

A `Driver` carries out operations and shows the states; `LedgerMachine` makes them up and checks after every step that
nothing exceeds its limit, that the books balance, and that each receipt is what a simple model of it says.
"""

from types import SimpleNamespace
from typing import Any, Protocol

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.ledger import PRICES, reserve

from tollway_serving.contract.catalogue import Limits, Quota
from tollway_serving.contract.units import METERS, charge_micro
from tollway_serving.ledger.admit import quota_used
from tollway_serving.ledger.ops import Cover, HoldClosed, Receipt, Refused, Reserve, Reserved, Settle
from tollway_serving.ledger.state import State, account_subject, decode, encode, hold_from_row, key_subject
from tollway_serving.ledger.transaction import (
    COVER_COLUMNS,
    HOLD_COLUMNS,
    USAGE_COLUMNS,
    AnyOp,
    EntryFacts,
    Expire,
    Result,
    Subject,
    Work,
    needs,
)
from tollway_serving.ledger.verify import Books, Report

START = 1_793_491_200_000  # the last day of October 2026, UTC


class Driver(Protocol):
    def run(self, ops: list[AnyOp]) -> list[Result]: ...
    def grant(self, account: str, micro: int) -> None: ...
    def advance(self, ms: int) -> None: ...
    def states(self) -> dict[str, State]: ...
    def now(self) -> int: ...
    def problems(self) -> list[str]: ...
    def close(self) -> None: ...


class PureDriver:
    """The rows are dicts, and every transaction passes through their JSON as in a database."""

    def __init__(self) -> None:
        self.clock = START
        self.subjects: dict[str, str] = {}
        self.holds: dict[str, dict[str, Any]] = {}
        self.usage: dict[str, dict[str, Any]] = {}

    def run(self, ops: list[AnyOp]) -> list[Result]:
        wanted = needs(ops)
        holds = {name: hold_from_row(self.holds[name]) for name in wanted.charges if name in self.holds}
        for hold in holds.values():
            wanted.subjects.update(filter(None, (account_subject(hold.account), hold.key_subject)))
        receipts = {
            name: Receipt(name, row["charged_micro"], row["overrun_micro"], {})
            for name, row in self.usage.items()
            if name in wanted.closing
        }
        subjects = {n: Subject(decode(self.subjects.get(n) or encode(State())), START) for n in wanted.subjects}
        entries = {where: EntryFacts(1, False) for where in wanted.entries}
        work = Work(self.clock, 1, subjects, holds, receipts, entries)
        results = work.run(ops)
        self.subjects.update(dict(work.subject_rows()))
        self.holds.update({row[0]: dict(zip(HOLD_COLUMNS, row, strict=True)) for row in work.opened_rows()})
        for row in work.covered_rows():
            self.holds[row[0]].update(zip(COVER_COLUMNS, row, strict=True))
        for name in work.ended:
            del self.holds[name]
        self.usage.update({row[0]: dict(zip(USAGE_COLUMNS, row, strict=True)) for row in work.usage})
        return results

    def grant(self, account: str, micro: int) -> None:
        state = decode(self.subjects.get(account_subject(account)) or encode(State()))
        state.topup[0] += micro
        self.subjects[account_subject(account)] = encode(state)

    def advance(self, ms: int) -> None:
        self.clock += ms  # backwards, too: a database that failed over has another clock

    def states(self) -> dict[str, State]:
        return {name: decode(text) for name, text in self.subjects.items()}

    def now(self) -> int:
        return self.clock

    def problems(self) -> list[str]:
        report = Report()
        stored = self.states()
        books = Books(report, stored, 0)
        for hold in self.holds.values():
            books.hold(hold_from_row(hold), 0)
        for row in self.usage.values():
            books.row(SimpleNamespace(**row))  # type: ignore[arg-type]
            state = books.expected(account_subject(row["account"]))
            state.trial[0] += int('"requests":1' in row["counts"])
        for name, state in stored.items():
            books.expected(name).topup[0] = state.topup[0]
        books.compare()
        return report.problems

    def close(self) -> None:
        pass


def _maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


_QUOTAS = st.builds(
    Quota,
    name=st.just("q"),
    meter=st.sampled_from(("Tokens", "OutputTokens", "InputTokens", "Requests")),
    limit=st.integers(0, 400),
    period=st.sampled_from(("Day", "Week", "Month")),
    model_ids=_maybe(st.sampled_from((("small",), ("small", "large"), ("large", "other")))),
)

LIMITS = st.builds(
    Limits,
    requests_per_minute=_maybe(st.integers(0, 30)),
    tokens_per_minute=_maybe(st.integers(0, 2000)),
    concurrent_requests=_maybe(st.integers(0, 5)),
    credits_monthly_micro=_maybe(st.integers(0, 1500)),
    trial_requests=_maybe(st.integers(1, 30)),
    quotas=st.lists(_QUOTAS, max_size=2).map(tuple),
)

_RESERVES = st.fixed_dictionaries(
    {
        "account": st.integers(0, 1),
        "narrow": st.booleans(),
        "model_id": st.sampled_from(("small", "large")),
        "input": st.integers(0, 60),
        "output_tokens": st.integers(0, 120),
        "output_minimum": st.integers(1, 5),
        "explicit": st.booleans(),
    }
)


class LedgerMachine(RuleBasedStateMachine):
    """Subclasses give `make_driver`. The limits stay as they are during a run: lowering one may leave more in use."""

    def make_driver(self) -> Driver:
        raise NotImplementedError

    @initialize(limits=st.tuples(LIMITS, LIMITS), key_limits=st.tuples(LIMITS, LIMITS))
    def begin(self, limits: tuple[Limits, Limits], key_limits: tuple[Limits, Limits]) -> None:
        self.driver = self.make_driver()
        self.limits = limits
        self.key_limits = tuple(each.model_copy(update={"trial_requests": None}) for each in key_limits)
        self.open: dict[str, tuple[Reserve, Reserved]] = {}
        self.closed: dict[str, Receipt] = {}

    def _reserve(self, wanted: dict[str, Any], replaces: str | None = None) -> Reserve:
        account = wanted["account"]
        return reserve(
            account,
            account_limits=self.limits[account],
            key_limits=self.key_limits[account] if wanted["narrow"] else Limits(),
            model_id=wanted["model_id"],
            prompt={"input_tokens": wanted["input"]},
            output_tokens=wanted["output_tokens"],
            output_minimum=wanted["output_minimum"],
            explicit=wanted["explicit"],
            replaces=replaces,
        )

    def _took(self, op: Reserve, answer: object) -> None:
        assert isinstance(answer, Reserved | Refused), answer
        if isinstance(answer, Refused):
            assert answer.retry_after_s is not None
            assert answer.retry_after_s >= 1
            assert answer.limit
            return
        least = op.output_tokens if op.explicit else min(op.output_minimum, op.output_tokens)
        assert least <= answer.output_tokens <= op.output_tokens
        counts = {"input_tokens": op.prompt["input_tokens"], "output_tokens": answer.output_tokens}
        assert answer.held_micro == charge_micro(counts, PRICES)  # type: ignore[arg-type]
        self.open[op.charge_id] = (op, answer)

    @rule(wanted=st.lists(_RESERVES, min_size=1, max_size=6))
    def reserves(self, wanted: list[dict[str, Any]]) -> None:
        ops = [self._reserve(each) for each in wanted]
        for op, answer in zip(ops, self.driver.run(list(ops)), strict=True):
            self._took(op, answer)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), wanted=_RESERVES)
    def falls_back(self, data: st.DataObject, wanted: dict[str, Any]) -> None:
        old, _ = self.open[data.draw(st.sampled_from(sorted(self.open)))]
        narrow = old.key_limits.binds()
        op = self._reserve(wanted | {"account": int(old.account[-1]), "narrow": narrow}, replaces=old.charge_id)
        (answer,) = self.driver.run([op])
        if isinstance(answer, Reserved):
            del self.open[old.charge_id]
            self.closed[old.charge_id] = Receipt(old.charge_id, 0, 0, {})
        self._took(op, answer)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), tokens=st.integers(0, 150), prompt=_maybe(st.integers(0, 60)))
    def covers(self, data: st.DataObject, tokens: int, prompt: int | None) -> None:
        charge = data.draw(st.sampled_from(sorted(self.open)))
        assert self.driver.run([Cover(charge, tokens, prompt)]) == [None]

    @precondition(lambda self: self.open)
    @rule(
        data=st.data(),
        input_tokens=st.integers(0, 80),
        output=st.integers(0, 150),
        status=st.sampled_from(("ok", "error", "cancelled", "released")),
    )
    def settles(self, data: st.DataObject, input_tokens: int, output: int, status: Any) -> None:
        charge = data.draw(st.sampled_from(sorted(self.open)))
        _, held = self.open.pop(charge)
        counts = {"input_tokens": input_tokens, "output_tokens": output}
        (receipt,) = self.driver.run([Settle(charge, counts, status)])  # type: ignore[arg-type]
        assert isinstance(receipt, Receipt)
        used = 0 if status == "released" else charge_micro(counts, PRICES)  # type: ignore[arg-type]
        assert (receipt.charged_micro, receipt.overrun_micro) == (
            min(used, held.held_micro),
            max(0, used - held.held_micro),
        )
        self.closed[charge] = receipt

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def expires(self, data: st.DataObject) -> None:
        charge = data.draw(st.sampled_from(sorted(self.open)))
        _, held = self.open.pop(charge)
        (receipt,) = self.driver.run([Expire(charge)])
        assert isinstance(receipt, Receipt)
        assert receipt.charged_micro <= held.held_micro
        self.closed[charge] = receipt

    @precondition(lambda self: self.closed)
    @rule(data=st.data())
    def closed_stays_closed(self, data: st.DataObject) -> None:
        charge = data.draw(st.sampled_from(sorted(self.closed)))
        again, cover = self.driver.run([Settle(charge, {"output_tokens": 9}, "ok"), Cover(charge, 99)])
        assert isinstance(again, Receipt)
        assert again.charged_micro == self.closed[charge].charged_micro
        assert isinstance(cover, HoldClosed)

    @rule(account=st.integers(0, 1), micro=st.integers(1, 300))
    def tops_up(self, account: int, micro: int) -> None:
        self.driver.grant(f"team/a{account}", micro)

    @rule(ms=st.integers(-3_600_000, 3_600_000) | st.sampled_from((86_400_000, 7 * 86_400_000, 31 * 86_400_000)))
    def time_passes(self, ms: int) -> None:
        self.driver.advance(ms)

    @invariant()
    def nothing_exceeds_its_limit(self) -> None:
        if not hasattr(self, "driver"):
            return
        for account in (0, 1):
            sample = reserve(account, key_limits=Limits(trial_requests=1))
            for name, limits in (
                (account_subject(sample.account), self.limits[account]),
                (key_subject(sample.key_uid, sample.key_id, sample.key_limits), self.key_limits[account]),
            ):
                state = self.driver.states().get(name or "")
                if state is not None:
                    self._within(state, limits)

    def _within(self, state: State, limits: Limits) -> None:
        now = max(self.driver.now(), state.clock)
        granted, used, held = state.topup
        assert used >= 0 <= held
        assert used + held <= granted
        for settled, reserved in state.credits.values():
            assert settled >= 0 <= reserved
            assert settled + reserved <= (
                limits.credits_monthly_micro if limits.credits_monthly_micro is not None else 1e18
            )
        for quota in limits.quotas:
            assert sum(quota_used(state, quota, now)) <= quota.limit * METERS[quota.meter][1]
        for limit, count in ((limits.concurrent_requests, state.open), (limits.trial_requests, sum(state.trial))):
            assert 0 <= count <= (limit if limit is not None else 1e18)

    @invariant()
    def the_books_balance(self) -> None:
        if hasattr(self, "driver"):
            assert self.driver.problems() == []
            states = self.driver.states()
            accounts = [state for name, state in states.items() if name.startswith("account:")]
            assert sum(state.open for state in accounts) == len(self.open)

    def teardown(self) -> None:
        if hasattr(self, "driver"):
            for charge in sorted(self.open):
                (receipt,) = self.driver.run([Settle(charge, {}, "released")])
                assert isinstance(receipt, Receipt)
            for state in self.driver.states().values():
                assert state.open == 0
                assert state.topup[2] == state.trial[1] == 0
                assert all(held == 0 for _, held in state.credits.values())
            self.driver.close()
