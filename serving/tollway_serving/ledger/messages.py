"""The words of a refusal, for clients; used by `admit` only. No internal names, no other subject's numbers."""

from tollway_serving.contract.units import Meter, Period, format_credits

_METER_WORDS: dict[Meter, str] = {
    "Tokens": "tokens",
    "InputTokens": "input tokens",
    "OutputTokens": "output tokens",
    "Requests": "requests",
    "AudioSeconds": "seconds of audio",
    "Images": "images",
    "Characters": "characters",
    "Pages": "pages",
    "Files": "files",
    "VideoSeconds": "seconds of video",
    "MusicSeconds": "seconds of music",
}
_PERIOD_WORDS: dict[Period, str] = {"Day": "today", "Week": "this week", "Month": "this month"}


def rate(used: int, limit: int, what: str, need: int) -> str:
    return _exceeded(used, limit, what, "this minute", need)


def quota(used: int, limit: int, meter: Meter, period: Period, need: int, *, held: bool) -> str:
    when = _PERIOD_WORDS[period]
    text = _exceeded(used, limit, _METER_WORDS[meter], when, need)
    return f"{text} Part of it is held by calls in flight." if held else text


def _exceeded(used: int, limit: int, what: str, when: str, need: int) -> str:
    over = "for " if when.startswith("this") else ""
    text = f"Rate limit exceeded. You have used {used:,} of your {limit:,} {what} {over}{when}."
    return text if used >= limit else f"{text} This request needs {need:,}."


def too_large(need: int, limit: int) -> str:
    return f"Rate limit exceeded. This request needs {need:,} tokens and your limit is {limit:,} tokens a minute."


def concurrency(running: int, limit: int) -> str:
    return f"Rate limit exceeded. {running:,} of your {limit:,} concurrent requests are in progress."


def trial_requests(used: int, limit: int) -> str:
    return f"Rate limit exceeded. You have used {used:,} of your {limit:,} trial requests."


TRIAL_ENDED = "Your trial has ended. Ask for a plan to go on."


def credits_used_up(used: int, limit: int, need: int) -> str:
    return (
        f"Credits used up. You have used {format_credits(used)} of your {format_credits(limit)} credits for this "
        f"month. This request needs up to {format_credits(need)}."
    )


def credits_held(left: int, held: int, need: int) -> str:
    return (
        f"Credits held by calls in flight: of the {format_credits(left)} that are left, {format_credits(held)} are "
        f"held, and this request needs up to {format_credits(need)}. Try again when they have ended."
    )
