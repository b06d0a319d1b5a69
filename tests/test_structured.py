"""Structured output: masks are exact, and what is generated follows its schema, expression or grammar."""

from __future__ import annotations

import copy
import functools
import json
import random
import re
import sys

import jsonschema
import numpy as np
import pytest
import torch
import toy_tokenizers
from schema_cases import random_schema
from toy_models import toy_model

from unite_ext import GenerationOptions, StepOptions, UniteEnsemble
from unite_ext.decoding.engine import Engine, Failed, Finished
from unite_ext.decoding.processors import apply_masks
from unite_ext.demo import COMPARABLE, load_member, model_folder
from unite_ext.demo.problems import prompt_of
from unite_ext.methods.base import TokenMethod
from unite_ext.methods.unite import Unite
from unite_ext.structured.compiled import ONE_LINE, Structure
from unite_ext.structured.constraint import Constraint, StructureError
from unite_ext.structured.patterns import portable_pattern
from unite_ext.structured.schema import MAX_DEPTH, MAX_PARTS, portable_schema
from unite_ext.vocab.vocabulary import Vocabulary

xgrammar = pytest.importorskip("xgrammar")

PROMPT = prompt_of("Mia has 12 pens, finds 18 more and then loses 5. How many pens does Mia have now?")
ANSWER = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 9},
        "pens": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "pens"],
}
GRAMMAR = 'root ::= "é" [0-9]{1,3} (" 日本" | " pens")? "."'


@functools.cache
def demo() -> UniteEnsemble:
    return UniteEnsemble([load_member(name) for name in COMPARABLE])


@functools.cache
def byte_compiler() -> xgrammar.GrammarCompiler:
    """Of a vocabulary of single bytes: what it allows, the grammar allows."""
    info = xgrammar.TokenizerInfo([bytes([i]) for i in range(256)], xgrammar.VocabType.RAW, stop_token_ids=[])
    return xgrammar.GrammarCompiler(info)


def oracle(kind: str, source: str, text: bytes = b"") -> xgrammar.GrammarMatcher:
    """A matcher of bytes, after a text."""
    compiler = byte_compiler()
    if kind == "json_schema":
        compiled = compiler.compile_json_schema(source, **ONE_LINE)
    else:
        compiled = compiler.compile_regex(source) if kind == "regex" else compiler.compile_grammar(source)
    matcher = xgrammar.GrammarMatcher(compiled)
    assert not text or matcher.accept_string(text)
    return matcher


def is_beginning(data: bytes) -> bool:
    """Whether bytes are the beginning of UTF-8."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True


# Masks


@functools.cache
def vocabularies() -> list[Vocabulary]:
    toys = [toy_tokenizers.byte_level(), toy_tokenizers.sentencepiece(), toy_tokenizers.gemma()]
    return [*demo().alignment.vocabularies, *(Vocabulary.from_tokenizer(t) for t in toys)]


@pytest.mark.parametrize("seed", range(6))
def test_masks_are_exact(seed):
    """An id is allowed if and only if its bytes may follow, and EOS if and only if the text may end."""
    rng = random.Random(seed)
    structure = Structure("json_schema", random_schema(rng)) if seed % 2 else Structure("grammar", GRAMMAR)
    constraint = Constraint(structure, vocabularies(), 0)
    text = b""
    for _ in range(12):
        matcher = oracle(structure.kind, structure.source, text)
        following = []
        for m, vocabulary in enumerate(vocabularies()):
            mask = np.zeros(constraint.words(m), np.int32)
            constraint.fill(m, 0, mask)
            allowed = np.unpackbits(mask.view(np.uint8), bitorder="little")
            assert not allowed[vocabulary.size :].any()
            for i, data in enumerate(vocabulary.token_bytes):
                if i in vocabulary.eos_token_ids:
                    expected = matcher.is_completed()
                elif expected := bool(data) and is_beginning(text + data) and matcher.accept_string(data):
                    matcher.rollback(1)
                assert allowed[i] == expected, (m, i, data, text)
                if expected and data:
                    following.append(data)
        assert bool(following) != constraint.ended
        if constraint.ended:
            break
        data = rng.choice(following)
        constraint.accept(data)
        text += data


def test_halves_of_surrogate_pairs_are_no_text():
    """xgrammar lets them pass as characters; UTF-8 has no such bytes."""
    constraint = Constraint(Structure("regex", "[^a]+"), vocabularies(), 0)
    assert oracle("regex", "[^a]+").accept_string(b"\xed\xa0\x80")
    constraint.accept(b"\xed")
    for m, vocabulary in enumerate(vocabularies()):
        mask = np.zeros(constraint.words(m), np.int32)
        constraint.fill(m, 0, mask)
        allowed = np.unpackbits(mask.view(np.uint8), bitorder="little")
        found = {vocabulary.token_bytes[i] for i in np.flatnonzero(allowed)}
        assert found
        assert all(0x80 <= data[0] <= 0x9F for data in found)


def test_a_constraint_looks_ahead_and_comes_back():
    constraint = Constraint(Structure("regex", "ab*c"), vocabularies()[:2], 0)
    masks = [np.zeros(constraint.words(m), np.int32) for m in (0, 0, 0, 0)]
    constraint.fill(0, 0, masks[0])
    assert constraint.look_ahead([b"a", b"b", b"x", b"c"]) == 2
    constraint.fill(0, 2, masks[1])
    constraint.fill(0, 0, masks[2])
    assert (masks[0] == masks[2]).all()
    assert constraint.look_ahead([b"a", b"c"]) == 2
    constraint.accept(b"ab")
    constraint.fill(0, 0, masks[3])
    assert (masks[1] == masks[3]).all()
    with pytest.raises(StructureError, match="must follow its regex"):
        constraint.accept(b"a")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bound", [[0, 1, 2], [2], [0, 2]])
def test_masks_are_set_in_their_rows_only(dtype, bound, monkeypatch):
    """On the CPU, and in the way of other devices; also where the head is wider than the vocabulary."""
    constraint = Constraint(Structure("regex", "[0-9]+"), vocabularies(), 0)
    for m, vocabulary in enumerate(vocabularies()):
        mask = np.zeros(constraint.words(m), np.int32)
        constraint.fill(m, 0, mask)
        allowed = torch.from_numpy(np.unpackbits(mask.view(np.uint8), bitorder="little")[: vocabulary.size]).bool()
        logits = torch.randn(3, vocabulary.size + 70, generator=torch.Generator().manual_seed(m)).to(dtype)
        for backend in ("cpu", "torch_native"):
            masked = logits.clone()
            apply = functools.partial(_apply_by, xgrammar.apply_token_bitmask_inplace, backend)
            with monkeypatch.context() as patch:
                patch.setattr(xgrammar, "apply_token_bitmask_inplace", apply)
                apply_masks(m, masked, [(r, constraint, 0, False) for r in bound])
            for r in range(3):
                kept = masked[r, : vocabulary.size] != -torch.inf
                assert torch.equal(kept, allowed if r in bound else torch.ones_like(allowed))
                assert torch.equal(masked[r, : vocabulary.size][kept], logits[r, : vocabulary.size][kept])


def _apply_by(apply, wanted, logits, bits, **options):
    apply(logits, bits, **{**options, "backend": wanted})


# Texts


def requests_of(ensemble: UniteEnsemble, schemas, max_new_tokens: int, rng: random.Random, boundaries: str):
    """Every schema's request, all in one engine: greedy or sampled."""
    engine = Engine(ensemble.members, ensemble.alignment, max_requests=64)
    method = Unite(ensemble.alignment, ensemble.members, StepOptions(k=5, boundaries=boundaries))
    for index, schema in enumerate(schemas):
        kind = rng.choice([{}, {"do_sample": True, "temperature": 1.3}])
        options = GenerationOptions(json_schema=schema, max_new_tokens=max_new_tokens, **kind)
        engine.submit(PROMPT, method, options, index=index, seed=7)
    return sorted(engine.run(), key=lambda request: request.index)


def assert_answers_follow(count: int, seed: int, boundaries: str = "plain") -> None:
    rng = random.Random(seed)
    valid = 0
    while valid < count:
        schemas = [random_schema(rng) for _ in range(min(200, count))]
        requests = requests_of(demo(), schemas, 400, rng, boundaries)
        for schema, request in zip(schemas, requests, strict=True):
            text = request.text.decode("utf-8")
            if request.finish_reason == "eos":
                jsonschema.validate(json.loads(text), schema, cls=jsonschema.Draft202012Validator)
                valid += 1
            else:  # text without a limit that a small model never closes
                assert request.finish_reason == "length"
                assert not oracle("json_schema", portable_schema(schema), bytes(request.text)).is_completed()
        assert valid > len(schemas) // 2


@pytest.mark.parametrize("boundaries", ["plain", "exact"])
def test_answers_follow_random_schemas(boundaries):
    assert_answers_follow(10, 1, boundaries)


@pytest.mark.full
@pytest.mark.parametrize("boundaries", ["plain", "exact"])
def test_a_thousand_answers_follow_random_schemas(boundaries):
    assert_answers_follow(1000, 2, boundaries)


@pytest.mark.parametrize("primary", [0, 1, 2])
@pytest.mark.parametrize("kind", ["json_schema", "grammar"])
def test_every_slot_that_can_win_keeps_the_text_valid(primary, kind):
    """Also those of which the primary emits the first sub-token only; EOS is among them only where a text may end."""
    given = {"json_schema": ANSWER, "grammar": GRAMMAR}[kind]
    output = demo().generate([PROMPT], primary=primary, k=20, return_dict=True, max_new_tokens=60, **{kind: given})
    alignment = demo().alignment
    source = portable_schema(given) if kind == "json_schema" else given
    eos = {(m, i) for m, v in enumerate(alignment.vocabularies) for i in v.eos_token_ids}
    text, seen = b"", {"whole": 0, "first sub-token": 0, "end": 0}
    for record, taken in zip(output.records[0], [*output.token_ids[0][primary], None]):
        matcher = oracle(kind, source, text)
        for ids, average in zip(record.union_ids, record.union_probs):
            if any((m, i) in eos for m, i in enumerate(ids)):
                assert matcher.is_completed()
                seen["end"] += 1
            elif ids[primary] >= 0:
                data = alignment.token_bytes(primary, ids[primary])
                longest = max(alignment.token_bytes(m, i) for m, i in enumerate(ids) if i >= 0)
                assert longest.startswith(data)
                assert matcher.accept_string(data), (text, data, average)
                matcher.rollback(1)
                seen["whole" if data == longest else "first sub-token"] += 1
        text += b"" if taken is None else alignment.token_bytes(primary, taken)
    assert output.finish_reasons == ["eos"]
    assert oracle(kind, source, text).is_completed()
    assert seen["whole"] > 20
    assert seen["first sub-token"] > 0


@pytest.mark.parametrize(
    "pattern",
    [
        r"\d{1,3} (pens|apples)\.",
        "^.{2,9}$",
        "é+日?",
        r"(?:a|b)*c",
        r"[\w-]{3}\.",
        "x{2,}?y",
        "[^0-9]{4}",
        r"\x41\u00e9\n",
    ],
)
def test_expressions_match_the_whole_text(pattern):
    texts = demo().generate([PROMPT] * 4, regex=pattern, do_sample=True, temperature=3.0, seed=5, max_new_tokens=60)
    matched = [re.fullmatch(pattern, text) is not None for text in texts]
    assert any(matched)
    for text, whole in zip(texts, matched):
        assert whole or not oracle("regex", portable_pattern(pattern), text.encode()).is_completed()


@pytest.mark.parametrize("speculate", [1, 4, "auto", "ngram", 1.0])
def test_speculation_changes_nothing(speculate):
    drafter = demo().members[1].name if speculate == 1.0 else speculate
    for given in ({"json_schema": ANSWER}, {"grammar": GRAMMAR}, {"json_schema": ANSWER, "repetition_penalty": 1.3}):
        plain = demo().generate([PROMPT, "Two:"], return_dict=True, max_new_tokens=60, **given)
        fast = demo().generate([PROMPT, "Two:"], return_dict=True, max_new_tokens=60, speculate=drafter, **given)
        assert fast.texts == plain.texts
        assert fast.token_ids == plain.token_ids
        assert fast.finish_reasons == plain.finish_reasons
    if speculate == 4:
        assert sum(fast.accepted) > sum(fast.num_steps) / 2  # drafts follow the grammar themselves


def test_requests_do_not_share_their_state():
    given = [
        {"json_schema": ANSWER},
        {"grammar": GRAMMAR},
        {},
        {"regex": "[a-d]{7}"},
        {"json_schema": ANSWER, "gate": 0.5},
    ]
    alone = [demo().generate(PROMPT, max_new_tokens=40, **options) for options in given]
    engine = Engine(demo().members, demo().alignment)
    method = Unite(demo().alignment, demo().members, StepOptions())
    for options in given:
        engine.submit(PROMPT, method, GenerationOptions(max_new_tokens=40, **options))
    together = {request.index: request.decoded() for request in engine.run()}
    assert [together[i] for i in range(len(given))] == alone


def test_a_text_ends_with_its_grammar():
    """Where nothing but the end may follow, no member is asked: also without an EOS id, and before `min_new_tokens`."""
    output = demo().generate([PROMPT], regex="yes|no", min_new_tokens=30, max_new_tokens=40, return_dict=True)
    assert output.texts[0] in ("yes", "no")
    assert output.finish_reasons == ["eos"]
    assert output.num_steps[0] == len(output.token_ids[0][0]) == len(output.records[0])

    tokenizers = [copy.deepcopy(load()) for load in (toy_tokenizers.byte_level, toy_tokenizers.sentencepiece)]
    for tokenizer in tokenizers:
        tokenizer.eos_token = None
    models = [toy_model("llama", tokenizers[0], seed=1), toy_model("mistral", tokenizers[1], seed=2)]
    for model in models:
        model.generation_config.eos_token_id = None
    endless = UniteEnsemble(models, tokenizers)
    assert not any(v.eos_token_ids for v in endless.alignment.vocabularies)
    assert json.loads(endless.generate("A", json_schema={"const": {"a": ["é"]}})) == {"a": ["é"]}


def test_a_text_may_go_on_where_it_could_end():
    texts = demo().generate([PROMPT] * 8, regex="[0-9]{1,30}", do_sample=True, temperature=1.5, seed=1)
    assert all(re.fullmatch("[0-9]{1,30}", text) for text in texts)
    assert len({len(text) for text in texts}) > 1


def test_a_dead_end_is_one_request_s_own():
    engine = Engine(demo().members, demo().alignment)
    method = Unite(demo().alignment, demo().members, StepOptions())
    dead = engine.submit(PROMPT, method, GenerationOptions(grammar='root ::= "a" x\nx ::= x "b"'))
    alive = engine.submit(PROMPT, method, GenerationOptions(regex="[a-c]{3}", max_new_tokens=9))
    ended = {}
    while engine.has_work:
        ended |= {event.request.key: event for event in engine.step() if isinstance(event, (Failed, Finished))}
    assert isinstance(ended[dead.key], Failed)
    assert re.search(r"nothing that the primary can write follows 'a'", str(dead.error))
    assert isinstance(dead.error, StructureError)
    assert isinstance(ended[alive.key], Finished)
    assert len(alive.decoded()) == 3


def test_a_member_that_cannot_spell_the_grammar_is_named():
    tokenizers = [toy_tokenizers.byte_level(), toy_tokenizers.wordpiece()]
    models = [toy_model("llama", tokenizers[0]), toy_model("llama", tokenizers[1])]
    ensemble = UniteEnsemble(models, tokenizers)
    with pytest.raises(StructureError, match=r"has no token that the grammar allows"):
        ensemble.generate("A", regex="日本")
    with pytest.raises(ValueError, match="no text that the primary can write"):
        ensemble.generate("A", regex="日本", primary=1)


def test_streams_and_answers_follow_too():
    assert "".join(demo().stream(PROMPT, json_schema=ANSWER)) == demo().generate(PROMPT, json_schema=ANSWER)
    for method in ("mbr", "gac", "packllm"):
        answer = json.loads(demo().generate(PROMPT, json_schema=ANSWER, method=method))
        jsonschema.validate(answer, ANSWER)
    trace = demo().trace(PROMPT, json_schema=json.dumps(ANSWER))
    assert json.loads(trace.text)
    assert json.loads(trace.options["json_schema"]) == ANSWER


# Refused, before any pass

REFUSED = [
    ({"json_schema": "{"}, "must be a JSON schema, got text that is not JSON"),
    ({"json_schema": {"type": "thing"}}, r"\$ must have a 'type' among .*, got 'thing'"),
    ({"json_schema": {"type": [["string"]]}}, r"\$ must have a 'type' among .*, got \['string'\]"),
    ({"json_schema": {"properties": {"a": {"not": {}}}}}, r"\$\.properties\.a must not use 'not'"),
    ({"json_schema": {"type": "array", "uniqueItems": True}}, "must not use 'uniqueItems'"),
    ({"json_schema": {"allOf": [{"type": "integer"}, {"minimum": 3}]}}, "one schema in 'allOf', got 2"),
    ({"json_schema": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}, "exclude each other"),
    ({"json_schema": {"enum": [1], "minimum": 3}}, "must not have 'minimum' beside 'enum'"),
    ({"json_schema": {"enum": [1], "type": "string"}}, "must allow a value"),
    ({"json_schema": {"$ref": "http://a/b"}}, "must refer to a part of the schema"),
    ({"json_schema": {"$ref": "#/$defs/a"}}, "which is not there"),
    ({"json_schema": {"type": "string", "pattern": "a", "maxLength": 3}}, "must not have 'maxLength' beside 'pattern'"),
    ({"json_schema": {"type": "string", "pattern": "(?=a)b"}}, r"\$\.pattern must not have look-around"),
    ({"json_schema": {"type": "string", "pattern": "(a"}}, "json_schema must be one that compiles"),
    ({"json_schema": {"type": "number", "multipleOf": 0.5}}, "'multipleOf' in integers only"),
    ({"json_schema": {"type": "integer", "minimum": 3, "maximum": 1}}, "minimum greater than maximum"),
    ({"json_schema": {"type": "array", "minItems": 3, "maxItems": 1}}, "'minItems' of at most 'maxItems'"),
    ({"json_schema": {"type": "object", "minProperties": 2}}, "must not use 'minProperties'"),
    ({"json_schema": {"properties": {"a": {}}, "additionalProperties": {"type": "null"}}}, "beside 'properties'"),
    ({"json_schema": {"properties": {}, "required": ["a"], "additionalProperties": False}}, "'a' in 'properties'"),
    ({"json_schema": {"enum": list(range(MAX_PARTS + 1))}}, f"at most {MAX_PARTS}"),
    ({"json_schema": False}, r"\$ must allow something"),
    ({"regex": r"\bfoo"}, "word boundaries"),
    ({"regex": "a^b"}, r"'\^' at its beginning only"),
    ({"regex": r"(a)\1"}, "escapes that can be enforced"),
    ({"regex": "(?i)a"}, "look-around, flags or names"),
    ({"regex": "[[:alpha:]]"}, "POSIX"),
    ({"regex": r"\Aa"}, r"leave out \\A"),
    ({"regex": "(a"}, "regex must be one that compiles, got: .*not closed"),
    ({"grammar": "root ::= x"}, 'grammar must be one that compiles, got: .*"x" is not defined'),
    ({"grammar": 'start ::= "a"'}, "root"),
    ({"regex": "a", "grammar": 'root ::= "a"'}, "one of json_schema, regex, grammar must be given, got regex and gram"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_cannot_be_enforced_is_refused(options, message, capfd):
    with pytest.raises(ValueError, match=message):
        GenerationOptions(**options)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_what_allows_no_text_is_refused_before_any_pass(monkeypatch):
    for context in (type(demo().members[0].new_context(max_requests=1)),):
        monkeypatch.setattr(context, "evaluate", None)
    for options, message in [
        ({"grammar": "root ::= root"}, "no text that the primary can write"),
        # From 0.2.9 on xgrammar sees the circle itself.
        ({"json_schema": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}}, "no text|Circular"),
        ({"regex": ""}, "the empty text"),
        ({"json_schema": ANSWER, "method": "mined"}, "json_schema must be None with method 'mined'"),
        ({"regex": "(", "method": "mbr"}, "compiles"),
    ]:
        with pytest.raises(ValueError, match=message):
            demo().generate(PROMPT, **options)
    for wrong in ({"regex": 3}, {"grammar": b"a"}, {"json_schema": 3}, {"json_schema": {"const": {1}}}):
        with pytest.raises((TypeError, ValueError), match="must"):
            GenerationOptions(**wrong)


def test_own_methods_say_whether_they_keep_to_what_members_propose():
    class Own(Unite):
        name = "own"
        keeps_structure = TokenMethod.keeps_structure

    method = Own(demo().alignment, demo().members, StepOptions())
    with pytest.raises(ValueError, match="regex must be None with method 'own'"):
        demo().generate(PROMPT, method=method, regex="a")


def test_deep_schemas_are_refused():
    deep: dict = {}
    for _ in range(MAX_DEPTH + 1):
        deep = {"type": "array", "items": deep}
    with pytest.raises(ValueError, match="levels deep"):
        GenerationOptions(json_schema=deep)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "xgrammar", None)
    with pytest.raises(ValueError, match=r"regex needs xgrammar: pip install 'unite_ext\[structured\]'"):
        GenerationOptions(regex="a")
    assert GenerationOptions().structure is None


# Schemas, written again


def accepts(schema: object, text: str) -> bool:
    matcher = oracle("json_schema", portable_schema(schema))
    return matcher.accept_string(text.encode()) and matcher.is_completed()


def test_schemas_mean_what_they_say():
    bounded = {"type": "string", "maxLength": 3}
    assert accepts(bounded, '"aé日"')
    assert not accepts(bounded, '"a\tb"')  # JSON has no such string, but xgrammar's own bounded strings do
    assert not accepts(bounded, '"abcd"')
    kinds = {"type": "object", "properties": {"kind": {"const": "a"}}, "required": ["kind"]}
    either = {"oneOf": [kinds, {**kinds, "properties": {"kind": {"const": "b"}}}]}
    assert accepts(either, '{"kind": "b"}')
    assert not accepts(either, '{"kind": "c"}')
    assert accepts({"minimum": 5}, "7")
    assert not accepts({"minimum": 5}, "3")
    assert accepts({"type": ["integer", "null"], "minimum": 5}, "null")
    assert accepts({"enum": [1, "a"], "type": "string"}, '"a"')
    assert not accepts({"enum": [1, "a"], "type": "string"}, "1")
    assert accepts({"required": ["a"]}, '{"a": [true]}')
    assert not accepts({"required": ["a"]}, "{}")
    assert accepts({"type": "array", "items": [{"type": "null"}], "additionalItems": False}, "[null]")
    assert not accepts({"type": "array", "items": [{"type": "null"}], "additionalItems": False}, "[null, 1]")
    assert accepts({"type": "object"}, '{"a": {"b": [1.5e3]}}')
    assert not accepts({"type": "object"}, "[]")
    assert not accepts({"type": "string", "pattern": "^.$"}, '"\n"')


def test_pydantic_models_are_schemas():
    from pydantic import BaseModel, Field

    class Item(BaseModel):
        title: str = Field(max_length=8)
        price: float | None = Field(ge=0, le=10)

    class Order(BaseModel):
        items: list[Item] = Field(min_length=1, max_length=2)
        paid: bool

    text = demo().generate(PROMPT, json_schema=Order, max_new_tokens=300)
    Order.model_validate_json(text)


# The command line


def test_the_command_line(tmp_path):
    from typer.testing import CliRunner

    from unite_ext.cli import app

    schema, grammar, rows = tmp_path / "schema.json", tmp_path / "answer.gbnf", tmp_path / "rows.jsonl"
    schema.write_text(json.dumps(ANSWER), encoding="utf-8")
    grammar.write_text(GRAMMAR, encoding="utf-8")
    members = [part for name in COMPARABLE[:2] for part in ("--model", str(model_folder(name)))]

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, ["generate", *members, "--prompt", PROMPT, *arguments])
        assert result.exit_code == code, result.output
        return result.output if code else result.stdout  # without the bar of loading

    jsonschema.validate(json.loads(run("--json-schema", str(schema))), ANSWER)
    assert re.fullmatch(r"\d{1,2} pens\n", run("--regex", r"\d{1,2} pens"))
    assert run("--grammar", str(grammar)).startswith("é")
    run("--json-schema", str(schema), "--output", str(rows))
    [row] = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    jsonschema.validate(json.loads(row["text"]), ANSWER)
    schema.write_text('{"type": "object"}', encoding="utf-8")  # another run, by its schema's content
    assert "json_schema" in run("--json-schema", str(schema), "--output", str(rows), "--resume", code=1)
    schema.write_text('{"type": "thing"}', encoding="utf-8")
    assert "'thing'" in run("--json-schema", str(schema), code=1)
    assert "missing.json" in run("--json-schema", str(tmp_path / "missing.json"), code=1)
