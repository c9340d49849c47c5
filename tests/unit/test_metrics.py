"""What a replica shows to Prometheus of what it has counted."""

from tollway_serving.gateway.metrics import Metrics


def test_counts_money_and_what_is_in_progress_are_shown() -> None:
    metrics = Metrics(lambda: 3)
    metrics.request("pro", "small", "/chat/completions", 200, None, 0.1)
    metrics.request("pro", "small", "/chat/completions", 429, "rate_limit_exceeded", 0.0)
    metrics.held("pro", 2_500_000)
    metrics.held("pro", -1_000_000)
    value = metrics.registry.get_sample_value
    assert value("tollway_requests_in_progress") == 3
    who = {"plan": "pro", "model": "small", "route": "/chat/completions"}
    assert value("tollway_requests_total", {**who, "status": "200"}) == 1
    assert value("tollway_errors_total", {**who, "code": "rate_limit_exceeded"}) == 1
    assert value("tollway_credits_held", {"plan": "pro"}) == 1.5
    assert value("tollway_settle_retries_total") == 0


def test_a_duration_counts_in_its_bucket_and_all_above() -> None:
    metrics = Metrics()
    for seconds in (0.005, 0.006, 700.0):
        metrics.first_token("small", "/chat/completions", seconds)
    who = {"model": "small", "route": "/chat/completions"}

    def bucket(bound: str) -> float | None:
        return metrics.registry.get_sample_value("tollway_first_token_seconds_bucket", {**who, "le": bound})

    assert [bucket(bound) for bound in ("0.005", "0.01", "600.0", "+Inf")] == [1, 2, 2, 3]
    assert metrics.registry.get_sample_value("tollway_first_token_seconds_sum", who) == 700.011
    assert metrics.registry.get_sample_value("tollway_first_token_seconds_count", who) == 3
