"""Fallbacks: taken before the first byte only, for the reasons named, in order, with the hold moved along."""

from typing import Any

import orjson
import pytest
from support.backend import Backend
from support.gateway import HELLO, Running, model, plan

from tollway_serving.contract.catalogue import Fallback, Limits, Timeouts, TokenBound

ASK: dict[str, Any] = {"messages": HELLO}


@pytest.fixture
async def second() -> Any:
    backend = await Backend().start()
    yield backend
    await backend.close()


async def two(start: Any, backend: Backend, second: Backend, **changes: Any) -> Running:
    """`small` with the fallback `large`, which costs ten times as much."""
    values: dict[str, Any] = {"fallbacks": (Fallback(model_id="large"),), "timeouts": Timeouts(first_byte_ms=300)}
    dear = {"input_tokens": 10_000_000, "output_tokens": 20_000_000}
    return await start(
        models=[model(backend.url, **values | changes), model(second.url, "large", prices=dear)],
        plans=[plan(model_ids=("small", "large"), limits=Limits(credits_monthly_micro=10_000_000))],
    )


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_taken_before_the_first_byte(
    start: Any, backend: Backend, second: Backend, streamed: bool, subtests: pytest.Subtests
) -> None:
    running = await two(start, backend, second)
    for number, (changes, reason) in enumerate(
        (
            ({"status": 500}, "Unavailable"),
            ({"status": 404}, "Unavailable"),
            ({"close_at_once": True}, "Unavailable"),
            ({"status": 429}, "Overloaded"),
            ({"before": 3}, "Timeout"),
            ({"cut_after": 0}, "Unavailable"),
        ),
        1,
    ):
        with subtests.test(changes=repr(changes)):
            backend.then(**changes)
            before = running.metric("tollway_fallbacks_total", model="small", fallback="large", reason=reason)
            if streamed:
                headers, raw = await running.stream(ASK)
                assert raw.endswith(b"data: [DONE]\n\n")
                assert b'"model":"large"' in raw
            else:
                status, headers, body = await running.post(ASK)
                assert (status, body["model"]) == (200, "large")
            assert headers["x-model-used"] == "large"
            assert headers["x-fallback-from"] == "small"
            assert headers["x-fallback-depth"] == "1"
            after = running.metric("tollway_fallbacks_total", model="small", fallback="large", reason=reason)
            assert after == before + 1
            row = (await running.usage_rows(number))[-1]
            assert (row["model_id"], row["fallback_from"], row["fallback_depth"]) == ("large", "small", 1)
            assert row["charged_micro"] == 10 * (7 + 2 * 5)
            assert row["charge_id"] == headers["x-charge-id"]


async def test_not_taken_for_the_clients_own_mistake(start: Any, backend: Backend, second: Backend) -> None:
    running = await two(start, backend, second)
    backend.then(status=400, body=b'{"error": {"message": "bad", "code": null}}')
    assert (await running.post(ASK))[0] == 400
    assert second.calls == []


async def test_not_taken_after_the_first_byte(start: Any, backend: Backend, second: Backend) -> None:
    running = await two(start, backend, second)
    backend.then(cut_after=2)
    headers, raw = await running.stream(ASK)
    assert b"model_unavailable" in raw
    assert "x-fallback-from" not in headers
    assert second.calls == []


async def test_reasons_are_those_of_the_entry(start: Any, backend: Backend, second: Backend) -> None:
    running = await two(start, backend, second, fallbacks=(Fallback(model_id="large", when=("ContextTooLong",)),))
    backend.then(status=500)
    assert (await running.post(ASK))[2]["error"]["code"] == "model_unavailable"
    backend.then(status=400, body=b'{"error": {"message": "9 > 5", "code": "context_length_exceeded"}}')
    status, headers, _ = await running.post(ASK)
    assert (status, headers["x-model-used"]) == (200, "large")


async def test_a_prompt_that_can_not_fit_goes_to_a_larger_context(
    start: Any, backend: Backend, second: Backend
) -> None:
    running = await two(
        start, backend, second, context_tokens=64, fallbacks=(Fallback(model_id="large", when=("ContextTooLong",)),)
    )
    long = {"messages": [{"role": "user", "content": "word " * 10_000}]}
    status, headers, _ = await running.post(long)
    assert (status, headers["x-model-used"]) == (200, "large")
    assert backend.calls == []


async def test_state_and_queue_of_the_entry(start: Any, backend: Backend, second: Backend) -> None:
    running = await two(start, backend, second, state="Unavailable")
    status, headers, _ = await running.post(ASK)
    assert (status, headers["x-fallback-from"], backend.calls) == (200, "small", [])


async def test_the_first_error_is_told_when_all_fail(start: Any, backend: Backend, second: Backend) -> None:
    running = await two(start, backend, second)
    backend.then(status=429)
    second.then(status=500)
    status, headers, body = await running.post(ASK)
    assert (status, body["error"]["code"]) == (503, "model_overloaded")
    assert headers["retry-after"] == "1"
    rows = await running.usage_rows(2)
    assert {row["status"] for row in rows} == {"released", "error"}
    assert sum(row["charged_micro"] for row in rows) == 0


async def test_a_fallback_outside_the_plan_or_unable_is_skipped(start: Any, backend: Backend, second: Backend) -> None:
    running = await two(start, backend, second)
    await running.change(plans=(plan(model_ids=("small",)),))
    backend.then(status=500)
    assert (await running.post(ASK))[0] == 503
    dumb = model(second.url, "large", parameters=())
    await running.change(models=(running.catalogue.models[0], dumb), plans=(plan(model_ids=("small", "large")),))
    backend.then(status=500)
    assert (await running.post({**ASK, "temperature": 0.3}))[0] == 503
    assert second.calls == []


async def test_a_fallback_that_is_too_dear(start: Any, backend: Backend, second: Backend) -> None:
    running = await two(start, backend, second)
    await running.change(plans=(plan(model_ids=("small", "large"), limits=Limits(credits_monthly_micro=100)),))
    backend.then(status=500)
    status, _, body = await running.post({**ASK, "max_tokens": 10})
    assert (status, body["error"]["code"]) == (503, "model_unavailable")
    assert (await running.post({**ASK, "max_tokens": 10}))[0] == 200


async def test_low_credits_choose_the_cheaper_model(start: Any, backend: Backend, second: Backend) -> None:
    running = await two(start, backend, second, fallbacks=(Fallback(model_id="large", when=("CreditsLow",)),))
    low = plan(model_ids=("small", "large"), limits=Limits(credits_monthly_micro=10**7), low_watermark_micro=10**8)
    await running.change(plans=(low,))
    assert (await running.post(ASK))[1]["x-model-used"] == "large"
    second.then(status=500)
    status, headers, _ = await running.post(ASK)
    assert (status, headers["x-model-used"]) == (200, "small")
    rows = [row for row in await running.usage_rows(5) if row["status"] == "ok"]
    assert [row["charged_micro"] for row in rows] == [170, 17]


async def test_output_maximum_is_the_fallbacks(start: Any, backend: Backend, second: Backend) -> None:
    running = await two(start, backend, second)
    small = model(second.url, "large", output_tokens=3, token_bound=TokenBound(fixed=64))
    await running.change(models=(running.catalogue.models[0], small))
    backend.then(status=500)
    _, _, body = await running.post({**ASK, "max_tokens": 500})
    assert body["choices"][0]["finish_reason"] == "length"
    assert orjson.loads(orjson.dumps(second.calls[0].body))["max_completion_tokens"] == 3
