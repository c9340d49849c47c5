"""Every code of the contract's table has a test that provokes it over HTTP, or belongs to what is not here yet."""

import ast
import traceback
from pathlib import Path
from typing import Any, Final

import pytest
from support.gateway import HELLO, Running, check_error

from tollway_serving.gateway.errors import TABLE

HERE = Path(__file__).parent

PROVOKED: Final[dict[str, str]] = {
    "invalid_json": "test_errors.py::test_bad_requests",
    "missing_required_parameter": "test_errors.py::test_bad_requests",
    "invalid_value": "test_errors.py::test_bad_requests",
    "unsupported_parameter": "test_errors.py::test_bad_requests",
    "context_length_exceeded": "test_errors.py::test_bad_requests",
    "tools_not_supported_by_model": "test_errors.py::test_bad_requests",
    "audio_not_supported_by_model": "test_media.py::test_parts_reach_models_that_take_them",
    "image_not_supported_by_model": "test_media.py::test_parts_reach_models_that_take_them",
    "unsupported_file_format": "test_media.py::test_parts_reach_models_that_take_them",
    "file_not_found": "test_media.py::test_parts_of_wrong_shapes",
    "invalid_api_key": "test_errors.py::test_keys",
    "expired_api_key": "test_errors.py::test_keys",
    "endpoint_not_enabled": "test_errors.py::test_endpoint_of_the_plan",
    "model_not_found": "test_errors.py::test_aliases_and_models_outside_the_plan",
    "not_found": "test_errors.py::test_paths_and_methods",
    "method_not_allowed": "test_errors.py::test_paths_and_methods",
    "request_too_large": "test_hostile.py::test_bodies_that_are_too_large",
    "rate_limit_exceeded": "test_errors.py::test_limits",
    "insufficient_quota": "test_errors.py::test_limits",
    "credits_held": "test_errors.py::test_credits_held_by_calls_in_flight",
    "internal_error": "test_codes.py::test_a_bug_of_ours",
    "model_unavailable": "test_errors.py::test_models_that_fail",
    "model_overloaded": "test_errors.py::test_models_that_fail",
    "model_starting": "test_errors.py::test_a_model_that_nobody_serves",
    "timeout": "test_errors.py::test_models_that_fail",
    "idempotency_in_progress": "test_idempotency.py::test_one_in_flight_is_in_progress",
    "idempotency_not_replayable": "test_idempotency.py::test_a_stream_is_not_given_again",
    "idempotency_mismatch": "test_idempotency.py::test_a_second_one_gets_the_first_answer_and_its_receipt",
    "ledger_unavailable": "test_money.py::test_a_locked_ledger_is_told_in_time_and_forgotten_when_it_is_back",
}
NOT_YET: Final[dict[str, str]] = {
    "no_audio_stream": "audio",
    "metadata_stripping_failed": "documents",
    "job_not_found": "videos and music",
    "file_too_large": "files",
    "storage_limit_exceeded": "files",
}


def test_each_code_is_provoked_or_belongs_to_what_is_not_here_yet() -> None:
    assert PROVOKED.keys() | NOT_YET.keys() == TABLE.keys()
    assert not PROVOKED.keys() & NOT_YET.keys()


@pytest.mark.parametrize("code", PROVOKED)
def test_its_test_exists(code: str) -> None:
    file, _, name = PROVOKED[code].partition("::")
    tree = ast.parse((HERE / file).read_text("utf-8"))
    (function,) = [node for node in tree.body if getattr(node, "name", None) == name]
    told = {node.value for node in ast.walk(function) if isinstance(node, ast.Constant)}
    # The test's own words, or the module's lists that it walks.
    names = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    for node in tree.body:
        target = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(target, ast.Name) and target.id in names:
            told |= {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
    assert code in told | {part.value for d in function.decorator_list for part in ast.walk(d)
                           if isinstance(part, ast.Constant)}  # fmt: skip


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_a_bug_of_ours(running: Running, monkeypatch: pytest.MonkeyPatch, streamed: bool) -> None:
    """Nothing of it is told; the log has it under the request's id, and nobody pays."""
    logged: list[tuple[str, str]] = []

    class Log:
        def exception(self, event: str, *, request_id: str, **_: Any) -> None:
            logged.append((request_id, traceback.format_exc()))

    def bug(*_: Any) -> None:
        raise RuntimeError("at line 7 of secret_module")

    monkeypatch.setattr("tollway_serving.gateway.routes.chat.ChatWork.payload", bug)
    monkeypatch.setattr("tollway_serving.gateway.app.log", Log())
    status, headers, body = await running.post({"messages": HELLO, "stream": streamed})
    error = check_error((status, headers, body), "internal_error")
    assert "secret_module" not in error["message"]
    ((request_id, trace),) = logged
    assert request_id == headers["x-request-id"]
    assert "secret_module" in trace
    (row,) = await running.usage_rows(1)
    assert (row["status"], row["error_code"], row["charged_micro"]) == ("error", "internal_error", 0)
