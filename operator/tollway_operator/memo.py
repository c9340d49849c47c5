"""Results of pure functions, kept as long as what they were made from is the same: builders, plan and status do here
what a pass does for each object.

Nothing is ever marked as changed by hand. A result is found by the very arguments that its function would be given, so
a function must look at nothing but them: each is handed only what concerns its object, never a whole world.
"""

from collections.abc import Callable, Hashable, Iterable
from itertools import chain, compress, count
from operator import is_not
from typing import Any, TypeVar, cast

R = TypeVar("R")

_FOREVER = 1 << 62


class Clock:
    """A pass's time, as a pure function may ask for it: notes until when its result holds. In whole seconds."""

    __slots__ = ("_now", "until")

    def __init__(self, now: int) -> None:
        self._now = now
        self.until = _FOREVER

    def reached(self, moment: int) -> bool:
        """Whether it is that late."""
        if moment <= self._now:
            return True
        self.until = min(self.until, moment)
        return False

    @property
    def now(self) -> int:
        """The time itself: what is made of it is made anew in the next second. `reached` is cheaper."""
        self.until = min(self.until, self._now + 1)
        return self._now


class Memo:
    """One a reconciler. A fresh one knows nothing, and leads to the same results."""

    def __init__(self) -> None:
        self._single: dict[Callable[..., Any], tuple[tuple[Any, ...], Any]] = {}
        self._tables: dict[Callable[..., Any], _Table] = {}

    def once(self, function: Callable[..., R], *args: Any) -> R:
        """function(*args), unless it was called with equal ones the last time. A result that equals the one before is
        that one, so that what is made of it needn't be made anew either. Call each function in one place."""
        before = self._single.get(function)
        if before is not None and before[0] == args:
            result = before[1]
        else:
            result = function(*args)
            if before is not None and before[1] == result:
                result = before[1]
        self._single[function] = (args, result)  # the newest arguments: what is the same object is compared fastest
        return cast("R", result)

    def each(
        self,
        function: Callable[..., R],
        keys: Iterable[Hashable],
        *columns: Iterable[Any],
        common: tuple[Any, ...] = (),
        now: int | None = None,
    ) -> tuple[R, ...]:
        """(function(*row, *common) for row in zip(*columns)), with a `clock` if there is a `now`. `keys` names the
        rows, whatever their order: each is compared with the one that its key had the last time. As for the rest like
        `once`: where nothing has changed, the whole answer is the one before, too."""
        table = self._tables.setdefault(function, _Table())
        return table.fill(function, tuple(keys), tuple(map(tuple, columns)), common, now)


_NONE: Any = object()
"""Of a key that was not there the last time."""


class _Table:
    """By columns, because comparing two of them object by object is next to nothing; rows are made of what differs."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._keys: tuple[Hashable, ...] = ()
        self._columns: tuple[tuple[Any, ...], ...] = ()
        self._common: tuple[Any, ...] = ()
        self._results: tuple[Any, ...] = ()
        self._timed: dict[Hashable, tuple[int, int]] = {}  # from when until when results hold that asked for the time

    def fill(
        self,
        function: Callable[..., R],
        keys: tuple[Hashable, ...],
        columns: tuple[tuple[Any, ...], ...],
        common: tuple[Any, ...],
        now: int | None,
    ) -> tuple[R, ...]:
        before, known, timed = self._aligned(keys, columns)
        over = {key for key, (since, until) in timed.items() if now is None or not since <= now < until}
        if common != self._common:
            stale, over = set(range(len(keys))), set(keys)
        else:
            pairs = zip(columns, before, strict=True)
            differ = (map(is_not, column, old) for column, old in pairs if column is not old)
            stale = set(chain.from_iterable(compress(count(), flags) for flags in differ))
            if over:
                stale.update(index for index, key in enumerate(keys) if key in over)
        self._forget()  # should the function fail, everything is looked at again
        results, changed = list(known), False
        for index in sorted(stale):
            key, row = keys[index], tuple(column[index] for column in columns)
            if results[index] is not _NONE and key not in over and row == tuple(column[index] for column in before):
                continue
            if now is None:
                result = function(*row, *common)
            else:
                clock = Clock(now)
                result = function(*row, *common, clock=clock)
                timed.pop(key, None)
                if clock.until != _FOREVER:
                    timed[key] = (now, clock.until)
            if results[index] is _NONE or results[index] != result:
                results[index], changed = result, True
        self._keys, self._columns, self._common, self._timed = keys, columns, common, timed
        self._results = tuple(results) if changed else known
        return self._results

    def _aligned(
        self, keys: tuple[Hashable, ...], columns: tuple[tuple[Any, ...], ...]
    ) -> tuple[tuple[tuple[Any, ...], ...], tuple[Any, ...], dict[Hashable, tuple[int, int]]]:
        """The columns, results and times before, in the order of these keys."""
        if keys == self._keys:
            return self._columns or tuple(() for _ in columns), self._results, self._timed
        places = {key: index for index, key in enumerate(self._keys)}
        order = [places.get(key, -1) for key in keys]
        before = self._columns or tuple(() for _ in columns)
        *aligned, known = (tuple(map((*column, _NONE).__getitem__, order)) for column in (*before, self._results))
        there = set(keys)
        return tuple(aligned), known, {key: times for key, times in self._timed.items() if key in there}
