"""/openapi.json and /docs: valid, whole, of one piece with what the gateway really answers."""

import base64
import copy
import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import requests
from openapi_spec_validator import validate
from support.backend import Backend
from support.gateway import KEY, Running, model, plan
from support.product import Product, product

from tollway_serving.contract.catalogue import Endpoint
from tollway_serving.contract.engines import ENGINES
from tollway_serving.contract.units import UNITS
from tollway_serving.gateway import openapi
from tollway_serving.gateway.app import PREFIXES, ROUTES
from tollway_serving.gateway.errors import TABLE
from tollway_serving.gateway.operations import MEANINGS
from tollway_serving.gateway.routes import docs

TESTS = Path(__file__).resolve().parent.parent
AUTH = {"authorization": f"Bearer {KEY}"}
DOCUMENT = openapi.build(ROUTES)
ENDPOINTS: tuple[Endpoint, ...] = get_args(Endpoint)
TRANSPORT = {
    "date",
    "server",
    "content-type",
    "content-length",
    "transfer-encoding",
    "cache-control",
    "x-accel-buffering",
}
ALL_PARAMETERS = tuple({name for facts in ENGINES.values() for name in facts.parameters})


def closed(document: dict[str, Any]) -> dict[str, Any]:
    """The document with closed answers: published ones are open, so that later releases may add fields."""
    document = copy.deepcopy(document)
    for schema in document["components"]["schemas"].values():
        if schema.get("type") == "object":
            schema.setdefault("additionalProperties", False)
    return document


def check(schema: dict[str, Any], value: Any) -> None:
    """Holds `value` against a schema of the document, closed."""
    jsonschema.Draft202012Validator({**schema, "components": closed(DOCUMENT)["components"]}).validate(value)


def answers(operation: dict[str, Any], content_type: str = "application/json") -> dict[str, Any]:
    schema: dict[str, Any] = operation["responses"]["200"]["content"][content_type]["schema"]
    return schema


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    async def options(stack: AsyncExitStack, backend: Backend) -> dict[str, Any]:
        able = {
            "capabilities": ("Tools", "StructuredOutput", "Logprobs"),
            "endpoints": ENDPOINTS,
            "parameters": ALL_PARAMETERS,
        }
        names = ("smollm2", "minilm")
        defaults = dict.fromkeys(ENDPOINTS, "smollm2")
        return {
            "models": [model(backend.url, name, **able) for name in names],
            "plans": [plan(model_ids=names, default_models=defaults)],
        }

    with product(tmp_path_factory.mktemp("openapi"), options) as running:
        yield running


def test_valid_and_whole() -> None:
    validate(DOCUMENT)
    assert DOCUMENT["openapi"] == "3.1.0"
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    ids = [o["operationId"] for item in DOCUMENT["paths"].values() for m, o in item.items() if m != "servers"]
    assert len(ids) == len(set(ids)) == len({(r.method, r.path) for r in ROUTES})
    assert MEANINGS.keys() == TABLE.keys()


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path} {route.bare}")
def test_each_route_names_its_meter_and_is_described(route: Any) -> None:
    assert set(route.meters) <= set(UNITS)
    operation = DOCUMENT["paths"][route.path][route.method.lower()]
    assert operation["x-meters"] == (list(route.meters) or "free")
    assert ("requests" in route.meters) == bool(route.meters), "what is metered counts as a request"
    urls = [server["url"] for server in DOCUMENT["paths"][route.path].get("servers", DOCUMENT["servers"])]
    assert set(("/",) if route.bare else PREFIXES) <= set(urls)
    if route.method == "POST":
        assert openapi.table_of(route) is not None, "name the table that validates the body: Route(request=…)"
        assert operation["requestBody"]["content"]["application/json"]["examples"]


def test_each_parameter_is_described_as_its_table_has_it() -> None:
    for route in ROUTES:
        table = openapi.table_of(route)
        if table is None:
            continue
        schema = DOCUMENT["components"]["schemas"][table.model.__name__]
        assert schema["additionalProperties"] is False
        assert schema["properties"].keys() == table.parameters.keys()
        for name, parameter in table.parameters.items():
            described = schema["properties"][name]
            assert described["x-support"] == parameter.how
            assert described["description"].startswith(parameter.doc)
            assert (name in schema.get("required", ())) == parameter.required


def test_examples_of_answers() -> None:
    for item in DOCUMENT["paths"].values():
        for method, operation in item.items():
            if method == "servers":
                continue
            for response in operation["responses"].values():
                for content in response["content"].values():
                    values = [example["value"] for example in content.get("examples", {}).values()]
                    for value in [*values, *([content["example"]] if "example" in content else [])]:
                        check(content["schema"], value)


def test_examples_of_requests(served: Product, subtests: pytest.Subtests) -> None:
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            if method == "servers" or "requestBody" not in operation:
                continue
            body = operation["requestBody"]["content"]["application/json"]
            for name, example in body["examples"].items():
                with subtests.test(path=path, example=name):
                    check(body["schema"], example["value"])
                    answer = requests.post(f"{served.url}/v1{path}", json=example["value"], headers=AUTH, timeout=10)
                    assert answer.status_code == 200, answer.text
                    described = {name.lower() for name in operation["responses"]["200"]["headers"]}
                    assert {name.lower() for name in answer.headers} <= described | TRANSPORT
                    if not example["value"].get("stream"):
                        check(answers(operation), answer.json())
                        continue
                    frames = [line[6:] for line in answer.text.split("\n\n") if line.startswith("data: ")]
                    assert frames.pop() == "[DONE]"
                    for frame in frames:
                        check(answers(operation, "text/event-stream"), json.loads(frame))


def test_free_routes_answer_as_described(served: Product) -> None:
    for path in ("/models", "/models/smollm2"):
        operation = DOCUMENT["paths"]["/models" if path == "/models" else "/models/{id}"]["get"]
        check(answers(operation), requests.get(f"{served.url}/v1{path}", headers=AUTH, timeout=10).json())
    for path in ("/healthz", "/readyz"):
        check(answers(DOCUMENT["paths"][path]["get"]), requests.get(served.url + path, timeout=10).json())


async def test_served_under_every_prefix_without_a_key(running: Running) -> None:
    for prefix in ("", *PREFIXES):
        async with running.client.get(f"{running.url}{prefix}/openapi.json") as response:
            assert response.status == 200
            assert await response.json() == json.loads(openapi.document(ROUTES))
        async with running.client.get(f"{running.url}{prefix}/docs") as response:
            page = await response.text()
            assert response.headers["content-type"] == "text/html; charset=utf-8"
            assert response.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
            assert "http" not in page, "the page asks no other host"
        for name in (*docs.PINNED, "page.js"):
            assert f'"docs/{name}"' in page
            async with running.client.get(f"{running.url}{prefix}/docs/{name}") as response:
                assert response.status == 200
                assert response.headers["x-content-type-options"] == "nosniff"
                body = await response.read()
            if name in docs.PINNED:
                digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
                assert docs.PINNED[name] == f"sha256-{digest}"
                assert f'integrity="sha256-{digest}"' in page
        async with running.client.get(f"{running.url}{prefix}/docs/../routes/docs.py") as response:
            assert response.status == 404


def test_schemathesis_finds_no_failure(served: Product, tmp_path: Path) -> None:
    """Its own program, with everything that it checks but positive_data_acceptance: a body that the schema allows may
    still contradict itself, or ask for what a model can't do."""
    counts = schemathesis(served, tmp_path, "/v1", "--exclude-path-regex=^/(healthz|readyz)$")
    counts += schemathesis(served, tmp_path, "", "--include-path-regex=^/(healthz|readyz|openapi.json|docs.*)$")
    assert counts[200] > 20, "the generated requests never reached a model"
    assert counts[400] > 20
    print(dict(counts))


def schemathesis(served: Product, folder: Path, prefix: str, *options: str) -> Counter[int]:
    """Statuses of all answers, by how often they came. AssertionError with the program's findings."""
    report = folder / f"report{prefix.strip('/')}.ndjson"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{served.url}/openapi.json"),
            *(f"--url={served.url}{prefix}", f"--header=Authorization: Bearer {KEY}"),
            *("--checks=all", "--exclude-checks=positive_data_acceptance", "--phases=examples,coverage,fuzzing"),
            *("--max-examples=40", "--seed=1", "--no-color", "--suppress-health-check=all"),
            *("--report=ndjson", f"--report-ndjson-path={report}", "--request-timeout=10", *options),
        ],
        env={**os.environ, "SCHEMATHESIS_HOOKS": "support.schemathesis_hooks", "PYTHONPATH": str(TESTS)},
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return Counter(map(int, re.findall(r'"status_code": ?([0-9]{3})', report.read_text())))
