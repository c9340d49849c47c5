"""What is counted, what a price is for, and what a request costs: read by the CRDs, the gateway and the ledger.

Money is whole micro-credits (1 credit = 1,000,000). Counts are whole numbers of the units below; time is counted in
milliseconds, images' area in pixels, so that nothing is ever a float.
"""

from collections.abc import Mapping
from typing import Literal, get_args

Unit = Literal[
    "requests",
    "input_tokens",
    "output_tokens",
    "characters",
    "audio_ms",
    "images",
    "pixels",
    "video_ms",
    "music_ms",
    "pages",
    "files",
]
UNITS: tuple[Unit, ...] = get_args(Unit)

Meter = Literal[
    "Tokens",
    "InputTokens",
    "OutputTokens",
    "Requests",
    "AudioSeconds",
    "Images",
    "Characters",
    "Pages",
    "Files",
    "VideoSeconds",
    "MusicSeconds",
]

Period = Literal["Day", "Week", "Month"]

METERS: dict[Meter, tuple[tuple[Unit, ...], int]] = {
    "Tokens": (("input_tokens", "output_tokens"), 1),
    "InputTokens": (("input_tokens",), 1),
    "OutputTokens": (("output_tokens",), 1),
    "Requests": (("requests",), 1),
    "AudioSeconds": (("audio_ms",), 1000),
    "Images": (("images",), 1),
    "Characters": (("characters",), 1),
    "Pages": (("pages",), 1),
    "Files": (("files",), 1),
    "VideoSeconds": (("video_ms",), 1000),
    "MusicSeconds": (("music_ms",), 1000),
}
"""A quota's meter: the units that it adds up, and how many of them make one of the limit's."""

PRICE_UNITS: dict[Unit, int] = {
    "requests": 1,
    "input_tokens": 1_000_000,
    "output_tokens": 1_000_000,
    "characters": 1_000_000,
    "audio_ms": 60_000,
    "images": 1,
    "pixels": 1_000_000,
    "video_ms": 1_000,
    "music_ms": 1_000,
    "pages": 1,
    "files": 1,
}
"""How many units a price is for: tokens and characters a million, audio a minute, area a megapixel, films a second."""

_COMMON = 3_000_000  # the least number that each of PRICE_UNITS' values divides, so that sums stay whole

_FACTORS: Mapping[Unit, int] = {unit: _COMMON // size for unit, size in PRICE_UNITS.items()}

MICRO = 1_000_000
"""Micro-credits in a credit."""


def charge_micro(counts: Mapping[Unit, int], prices: Mapping[Unit, int]) -> int:
    """Micro-credits for `counts` at `prices` (micro-credits per PRICE_UNITS of each), rounded up once, never < 0."""
    return rounded_up(commons(counts, prices))


def rounded_up(parts: int) -> int:
    """Whole micro-credits for what `commons` counts."""
    return -(-parts // _COMMON)


def commons(counts: Mapping[Unit, int], prices: Mapping[Unit, int]) -> int:
    """The same before it is rounded, in parts of a micro-credit (_COMMON of them)."""
    total = 0
    for unit, price in prices.items():
        if price and unit in counts:
            total += counts[unit] * price * _FACTORS[unit]
    return total


def price_in_commons(unit: Unit, prices: Mapping[Unit, int]) -> int:
    """Of one `unit`."""
    return prices.get(unit, 0) * _FACTORS[unit]


def affordable_units(micro: int, price: int, spent: int) -> int | None:
    """How many units at `price` fit into `micro` micro-credits beside what is `spent`, both in parts as `commons`
    counts them; None where the unit is free."""
    return None if price <= 0 else max(0, (micro * _COMMON - spent) // price)


def format_credits(micro: int) -> str:
    """A decimal number of credits without trailing zeros: 1500000 is "1.5"; what the headers and the CLI print."""
    sign, micro = ("-", -micro) if micro < 0 else ("", micro)
    whole, part = divmod(micro, MICRO)
    return f"{sign}{whole}" + (f".{part:06d}".rstrip("0") if part else "")
