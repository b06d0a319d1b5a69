"""Structured output over HTTP, asked for with OpenAI's own client."""

from __future__ import annotations

import json
import re

import jsonschema
import openai
import pytest

for package in ("fastapi", "xgrammar"):
    pytest.importorskip(package)

from pydantic import BaseModel, Field  # noqa: E402
from running_server import CHAT, PROMPT, running  # noqa: E402

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "pens": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "pens"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}


@pytest.fixture(scope="module")
def server():
    with running() as server:
        yield server


def test_answers_follow_their_schemas(server):
    client = server.client()
    answer = client.chat.completions.create(model="unite", messages=CHAT, response_format=FORMAT, max_tokens=80)
    jsonschema.validate(json.loads(answer.choices[0].message.content), SCHEMA)
    assert answer.choices[0].finish_reason == "stop"
    pieces = client.chat.completions.create(
        model="unite",
        messages=CHAT,
        response_format=FORMAT,
        max_tokens=80,
        stream=True,
        extra_body={"unite": {"trace": True}},
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in pieces if chunk.choices)
    assert text == answer.choices[0].message.content


def test_pydantic_models_of_the_client(server):
    class Answer(BaseModel):
        ok: bool
        pens: int = Field(ge=0, le=99)

    parsed = server.client().chat.completions.parse(model="unite", messages=CHAT, response_format=Answer, max_tokens=80)
    assert isinstance(parsed.choices[0].message.parsed, Answer)


def test_objects_expressions_and_grammars(server):
    client = server.client()
    text = client.chat.completions.create(
        model="unite", messages=CHAT, response_format={"type": "json_object"}, max_tokens=5
    ).choices[0].message.content  # fmt: skip
    assert text.startswith("{")
    for unite, pattern in [({"regex": r"\d+ pens"}, r"\d+ pens"), ({"grammar": 'root ::= "é" [0-9]{2}'}, r"é\d\d")]:
        answer = client.completions.create(model="unite", prompt=PROMPT, max_tokens=20, extra_body={"unite": unite})
        assert re.fullmatch(pattern, answer.choices[0].text)
    plain = client.completions.create(model="unite", prompt=PROMPT, max_tokens=9)
    text = client.completions.create(
        model="unite", prompt=PROMPT, max_tokens=9, extra_body={"response_format": {"type": "text"}}
    )
    assert plain.choices[0].text == text.choices[0].text


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        (
            {"response_format": {**FORMAT, "json_schema": {"name": "a", "schema": {"type": "thing"}}}},
            "response_format",
            "'thing'",
        ),
        ({"response_format": {"type": "xml"}}, "response_format", "xml|expected tags"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.json_schema", "must be given"),
        ({"unite": {"regex": "("}}, "unite.regex", "not closed"),
        ({"unite": {"grammar": "root ::= root"}}, "unite.grammar", "no text"),
        ({"unite": {"regex": "a"}, "response_format": {"type": "json_object"}}, None, "json_schema and regex"),
    ],
)
def test_what_does_not_compile_is_a_400(server, fields, param, message):
    reply = server.post("/v1/chat/completions", {"model": "unite", "messages": CHAT, **fields})
    assert reply.status_code == 400
    assert re.search(message, reply.json()["error"]["message"]), reply.text
    assert reply.json()["error"]["param"] == param


def test_a_dead_end_is_the_request_s_own(server):
    with pytest.raises(openai.BadRequestError, match="nothing that the primary can write follows"):
        server.client().completions.create(
            model="unite", prompt=PROMPT, extra_body={"unite": {"grammar": 'root ::= "a" x\nx ::= x "b"'}}
        )
    server.wait_until_idle()
    assert server.client().completions.create(model="unite", prompt=PROMPT, max_tokens=3).choices[0].text
