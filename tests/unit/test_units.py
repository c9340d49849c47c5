"""Money and counts: exact against fractions, for every unit."""

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway_serving.contract.units import (
    METERS,
    MICRO,
    PRICE_UNITS,
    UNITS,
    Unit,
    affordable_units,
    charge_micro,
    commons,
    format_credits,
    price_in_commons,
)

_COUNTS = st.dictionaries(st.sampled_from(UNITS), st.integers(0, 10**12))
_PRICES = st.dictionaries(st.sampled_from(UNITS), st.integers(0, 10**12))


def _exact(counts: dict[Unit, int], prices: dict[Unit, int]) -> Fraction:
    return sum((Fraction(n * prices.get(unit, 0), PRICE_UNITS[unit]) for unit, n in counts.items()), Fraction(0))


def test_every_unit_has_a_price_unit_and_every_meter_known_units() -> None:
    assert set(PRICE_UNITS) == set(UNITS)
    assert {unit for units, _ in METERS.values() for unit in units} == set(UNITS) - {"pixels"}


@given(_COUNTS, _PRICES)
def test_a_charge_is_the_exact_sum_rounded_up_once(counts: dict[Unit, int], prices: dict[Unit, int]) -> None:
    exact = _exact(counts, prices)
    assert exact <= charge_micro(counts, prices) < exact + 1


@given(_COUNTS, _PRICES, st.integers(0, 10**15), st.sampled_from(UNITS))
def test_affordable_is_the_most_that_fits(
    counts: dict[Unit, int], prices: dict[Unit, int], micro: int, unit: Unit
) -> None:
    counts.pop(unit, None)
    most = affordable_units(micro, price_in_commons(unit, prices), commons(counts, prices))
    if most is None:
        assert not prices.get(unit)
        return
    assert charge_micro({**counts, unit: most + 1}, prices) > micro
    assert most == 0 or charge_micro({**counts, unit: most}, prices) <= micro


@given(_COUNTS, _PRICES, st.sampled_from(UNITS), st.integers(0, 10**9))
def test_using_more_never_costs_less(counts: dict[Unit, int], prices: dict[Unit, int], unit: Unit, more: int) -> None:
    larger = {**counts, unit: counts.get(unit, 0) + more}
    assert charge_micro(larger, prices) >= charge_micro(counts, prices)


@pytest.mark.parametrize(
    ("counts", "prices", "micro"),
    [
        ({}, {"input_tokens": 5}, 0),
        ({"input_tokens": 1}, {}, 0),
        ({"input_tokens": 1}, {"input_tokens": 1}, 1),
        ({"input_tokens": 1_000_000}, {"input_tokens": 100_000}, 100_000),
        ({"input_tokens": 1, "output_tokens": 1}, {"input_tokens": 1, "output_tokens": 1}, 1),
        ({"audio_ms": 90_000}, {"audio_ms": 6_000}, 9_000),
        ({"audio_ms": 1}, {"audio_ms": 60_000}, 1),
        ({"video_ms": 1_500, "requests": 1}, {"video_ms": MICRO, "requests": 7}, 1_500_007),
        ({"pixels": 1024 * 1024}, {"pixels": MICRO}, 1_048_576),
    ],
)
def test_charges(counts: dict[Unit, int], prices: dict[Unit, int], micro: int) -> None:
    assert charge_micro(counts, prices) == micro


@given(st.integers(-(10**18), 10**18))
def test_credits_are_written_exactly(micro: int) -> None:
    text = format_credits(micro)
    assert re.fullmatch(r"-?[0-9]+(\.[0-9]*[1-9])?", text)
    assert Fraction(text) * MICRO == micro
