"""Whatever the description of the interface allows, and what it does not, is answered as it says; never by a 5xx."""

from __future__ import annotations

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running_server import CHAT, PROMPT, running
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from unite_ext.serve.schema import NEUTRAL, ChatBody, CompletionBody

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
QUIET = settings(
    max_examples=40, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def server():
    with running(max_tokens=4, max_choices=3) as started:
        yield started


PATHS = {
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    "/v1/models": "GET",
    "/v1/models/{model}": "GET",
    "/health": "GET",
    "/metrics": "GET",
}


@pytest.mark.parametrize(
    ("path", "mode"),
    [(path, mode) for path, method in PATHS.items() for mode in GenerationMode if method == "POST" or mode.is_positive],
)
def test_the_description_is_true(server, path, mode):
    operation = schemathesis.openapi.from_url(f"{server.url}/openapi.json")[path][PATHS[path]]

    @settings(QUIET)
    @given(operation.as_strategy(generation_mode=mode))
    def check(case):
        response = case.call()
        case.validate_response(response, checks=CHECKS)
        seen.add(response.status_code)

    seen: set[int] = set()
    check()
    assert seen & {200, 400, 404}


def test_the_description_names_all(server):
    found = httpx.get(f"{server.url}/openapi.json").json()
    assert found["paths"].keys() == PATHS.keys()
    for operations in found["paths"].values():
        for operation in operations.values():
            assert "422" not in operation["responses"]
            assert operation["summary"]


@pytest.mark.parametrize(("path", "good"), [
    ("/v1/completions", {"prompt": PROMPT}), ("/v1/chat/completions", {"messages": CHAT}),
])  # fmt: skip
def test_a_good_body_with_one_field_of_anything(server, path, good):
    """Random bodies are mostly wrong at once; these are wrong in one place, or good."""
    fields = [*(ChatBody if "chat" in path else CompletionBody).model_fields, *NEUTRAL, "invented"]
    numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    leaves = st.none() | st.booleans() | numbers | st.text()
    keys = st.sampled_from(["role", "content", "type", "text", "k", "weights", "method", "trace", "include_usage"])
    small = st.integers(0, 3) | st.sampled_from([0.5, "user", "text", "unite", True, [1, 2], [0.5, 0.5]])
    values = st.recursive(
        leaves | small, lambda v: st.lists(v, max_size=3) | st.dictionaries(keys | st.text(max_size=4), v, max_size=3)
    )

    @settings(QUIET, max_examples=150)
    @given(st.dictionaries(st.sampled_from(fields), values, min_size=1, max_size=2))
    def check(change):
        body = {"model": "unite", "max_tokens": 2, **good, **change}
        response = server.post(path, body)
        assert response.status_code in (200, 400, 404, 413), response.text
        if response.status_code != 200:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        elif change.get("stream"):
            assert response.text.endswith("data: [DONE]\n\n")
            assert '"error"' not in response.text

    check()
    server.wait_until_idle()
