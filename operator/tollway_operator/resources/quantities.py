"""Exact numbers from what people write: credits, durations, quantities and times, read by the models' typed properties.

All whole numbers; every function expects a value that its rule in `common` has let through, and raises ValueError for
others.
"""

import re
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache

from tollway_serving.contract.units import MICRO

CREDITS = r"^[0-9]{1,9}([.][0-9]{1,6})?$"
DURATION = r"^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?([0-9]{1,6}ms)?$"
QUANTITY = "^[0-9]{1,20}([.][0-9]{1,9})?([numkMGTPE]|[KMGTPE]i)?$"  # no exponents: see common.quantity_cel
MAX_INT64 = 2**63 - 1

_QUANTITY = re.compile("([0-9]{1,20}(?:[.][0-9]{1,9})?)([numkMGTPE]|[KMGTPE]i)?")
_SUFFIXES = {
    **{
        suffix: Decimal(1000) ** power
        for power, suffix in enumerate(("n", "u", "m", "", "k", "M", "G", "T", "P", "E"), -3)
    },
    **{f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", 1)},
}
_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})([.][0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def micro_credits(value: int | str) -> int:
    """Micro-credits of a number of credits: "0.15" is 150000."""
    text = str(value)
    if not re.fullmatch(CREDITS.strip("^$"), text):
        raise ValueError(f"not a number of credits: {text}")
    whole, _, part = text.partition(".")
    return int(whole) * MICRO + int(part.ljust(6, "0") if part else 0)


@lru_cache(1024)
def milliseconds(text: str) -> int:
    """Milliseconds of a duration such as "1h30m"."""
    found = re.fullmatch(DURATION.strip("^$"), text)
    if found is None or not text:
        raise ValueError(f"not a duration: {text}")
    hours, minutes, seconds, millis = (int(part.rstrip("hms")) if part else 0 for part in found.groups())
    return ((hours * 60 + minutes) * 60 + seconds) * 1000 + millis


def quantity(value: int | str) -> Decimal:
    """A Kubernetes quantity ("25Mi", "0.5", "500m") as an exact number, cut off at 2^63 - 1 as Kubernetes does."""
    found = _QUANTITY.fullmatch(str(value))
    if found is None:
        raise ValueError(f"not a quantity: {value}")
    digits, suffix = found.groups()
    return min(Decimal(digits) * _SUFFIXES[suffix or ""], Decimal(MAX_INT64))


def whole_quantity(value: int | str, factor: int = 1) -> int:
    """`quantity` times `factor`, rounded up: bytes of "1.5Ki" are 1536, thousandths of "0.5" are 500."""
    number = quantity(value) * factor
    whole = int(number)
    return min(whole + (1 if number > whole else 0), MAX_INT64)


def is_quantity(value: int | str) -> bool:
    return _QUANTITY.fullmatch(str(value)) is not None


def epoch_seconds(text: str) -> int:
    """Seconds since the epoch of an RFC 3339 time, fractions dropped."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError(f"not an RFC 3339 time: {text}")
    day, hour, minute, second, _, zone = found.groups()
    moment = datetime.fromisoformat(f"{day}T{hour}:{minute}:{second}+00:00")
    seconds = int((moment - datetime.fromtimestamp(0, UTC)).total_seconds())
    if zone in "Zz":
        return seconds
    # By hand, since Kubernetes lets through offsets that datetime doesn't.
    offset = int(zone[1:3]) * 3600 + int(zone[4:6]) * 60
    return seconds + offset if zone[0] == "-" else seconds - offset


def is_time(text: str) -> bool:
    try:
        epoch_seconds(text)
    except ValueError:
        return False
    return True
