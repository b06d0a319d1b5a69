"""Decoding with members in the start state: texts, likelihoods, drafts, grammars and traces of their first steps."""

from __future__ import annotations

import math
import re

import pytest
import torch
from start_cases import HI, ensemble, member
from test_ensemble import first_unclear
from test_exact import plain_members

from unite_ext import UniteEnsemble, reference, reference_exact
from unite_ext.decoding.absence import Absences
from unite_ext.decoding.likelihood import score_continuations
from unite_ext.decoding.prompt_ids import encode_prompt
from unite_ext.decoding.start_state import first_steps
from unite_ext.members.context import LogitScores
from unite_ext.serve.jobs import Token
from unite_ext.serve.token_details import TokenDetails, emission_probs
from unite_ext.testing import Recorder

CHATS = [HI, [{"role": "user", "content": "42 and more"}], [{"role": "user", "content": "中"}]]
MIXED = [("sentencepiece", "direct"), ("byte_level", "direct"), ("gemma", "spaced")]
SILENT = 30.0  # what makes a bare space the likeliest first id by far


def encoded(ens: UniteEnsemble, prompt):
    return encode_prompt(ens.members, ens.alignment.vocabularies, prompt)


def assert_like_oracle(ens: UniteEnsemble, prompts: list, *, max_new_tokens: int, **options) -> int:
    """Every row is the oracle's decoding of its prompt alone, up to the first unclear step."""
    output = ens.generate(prompts, return_dict=True, max_new_tokens=max_new_tokens, **options)
    plain = {name: value for name, value in options.items() if name != "speculate"}
    primary, compared = options.get("primary", 0), 0
    for row, prompt in enumerate(prompts):
        own = encoded(ens, prompt)
        text, ids, steps = reference.generate(
            [m.model for m in ens.members], ens.alignment, own.ids, starts=own.starts, max_new_tokens=max_new_tokens,
            **plain,
        )  # fmt: skip
        clear = first_unclear(steps)
        assert output.token_ids[row][primary][:clear] == ids[:clear]
        if clear == len(steps):
            assert output.texts[row] == text.decode("utf-8", "replace")
            vocabularies = ens.alignment.vocabularies
            for m, (vocabulary, starts) in enumerate(zip(vocabularies, own.starts)):
                if vocabulary.fingerprint != vocabularies[primary].fingerprint:
                    spelled = vocabulary.start if starts else vocabulary
                    assert output.token_ids[row][m] == spelled.encode_continuation(text)
        compared += clear
    return compared


@pytest.fixture(scope="module")
def mixed():
    return ensemble(*MIXED)


@pytest.fixture(scope="module")
def likes_space():
    """The SentencePiece member with a bare space as its first id, as before digits; it leads in other tests too."""
    own = member("sentencepiece", "direct", 7)
    space = UniteEnsemble([own]).alignment.vocabularies[0].representatives()[b" "]
    close = own.tokenizer.convert_tokens_to_ids("[/INST]")
    # The embedding of [/INST] points where the head of the bare space does, past all else.
    with torch.no_grad():
        model = own.model
        direction = torch.zeros(model.config.hidden_size)
        direction[0] = SILENT
        model.get_input_embeddings().weight[close] = direction
        model.get_output_embeddings().weight[space, 0] = SILENT
    return own


@pytest.mark.parametrize("primary", [0, 1, 2])
def test_texts_are_the_oracles(mixed, primary):
    """Chats, of which two members are in the start state, beside plain text, of which none is."""
    assert encoded(mixed, HI).starts == (True, False, True)
    assert encoded(mixed, "The").starts == (False, False, False)
    assert assert_like_oracle(mixed, [*CHATS, "The quick", ""], max_new_tokens=12, primary=primary, k=5) > 30


def test_both_with_one_tokenizer_but_one_at_its_start():
    """Members that share their ids do not where only one has the space before its text."""
    ens = ensemble(("gemma", "direct"), ("gemma", "spaced"), ("byte_level", "direct"))
    assert encoded(ens, HI).starts == (False, True, False)
    for primary in (0, 1):
        assert_like_oracle(ens, CHATS, max_new_tokens=10, primary=primary, k=5)


@pytest.mark.parametrize("primary", [0, 1])
def test_a_bare_space_of_the_primary_is_no_text(likes_space, primary):
    """It begins what the others propose; the text stays empty for a step, and others' first step is still to come."""
    ens = UniteEnsemble([likes_space, member("byte_level"), member("gemma", "spaced", 2)])
    assert_like_oracle(ens, CHATS, max_new_tokens=8, primary=primary, k=4, weights=[8, 1, 1])
    output = ens.generate(CHATS, return_dict=True, max_new_tokens=8, primary=0, k=4, weights=[8, 1, 1])
    vocabulary = ens.alignment.vocabularies[0]
    assert all(vocabulary.token_bytes[ids[0][0]] == b" " for ids in output.token_ids)
    for ids, text in zip(output.token_ids, output.texts):
        whole = b"".join(vocabulary.token_bytes[i] for i in ids[0])
        assert text == whole.removeprefix(b" ").decode("utf-8", "replace")


def test_a_member_alone_writes_what_it_would(likes_space):
    """All members are at their start: a bare space is proposed, and only the text leaves it out."""
    for own in (likes_space, member("sentencepiece"), member("gemma", "spaced")):
        alone = UniteEnsemble([own])
        ids = own.encode_prompt(HI)
        classes = alone.alignment.classes[0]
        ineligible = [i for i in range(own.num_logits) if i >= len(classes) or classes[i] < 0]
        tensor = torch.tensor([ids])
        expected = own.model.generate(
            tensor, attention_mask=torch.ones_like(tensor), max_new_tokens=10, do_sample=False,
            suppress_tokens=ineligible, pad_token_id=0,
        )[0, len(ids) :].tolist()  # fmt: skip
        output = alone.generate([HI], return_dict=True, max_new_tokens=10)
        assert output.token_ids[0][0] == [i for i in expected if i != own.tokenizer.eos_token_id]
        whole = b"".join(alone.alignment.token_bytes(0, i) for i in output.token_ids[0][0])
        assert output.texts[0] == whole.removeprefix(b" ").decode("utf-8", "replace")


@pytest.mark.parametrize("speculate", [3, "ngram", "byte_level-1"])
@pytest.mark.parametrize("primary", [0, 1])
def test_drafts_change_no_text(mixed, speculate, primary):
    """The first place of a draft stands in another launch than the others."""
    assert_like_oracle(mixed, CHATS, max_new_tokens=10, primary=primary, k=5, speculate=speculate)


def test_drafts_behind_a_bare_space(likes_space):
    ens = UniteEnsemble([likes_space, member("byte_level")])
    assert_like_oracle(ens, CHATS, max_new_tokens=8, k=4, weights=[8, 1], speculate=3)


def test_the_step_in_parts_is_the_same(mixed):
    recorders = [Recorder(own) for own in mixed.members]
    options = {"max_new_tokens": 8, "k": 5, "return_dict": True}
    expected = UniteEnsemble(recorders, alignment=mixed.alignment).generate(CHATS, **options)
    replayed = UniteEnsemble([r.recorded() for r in recorders], alignment=mixed.alignment).generate(CHATS, **options)
    assert replayed.texts == expected.texts == mixed.generate(CHATS, max_new_tokens=8, k=5)
    assert replayed.token_ids == expected.token_ids


def test_streams_and_samples(mixed):
    options = {"max_new_tokens": 8, "do_sample": True, "seed": 3}
    whole = mixed.generate(CHATS[0], **options)
    assert "".join(mixed.stream(CHATS[0], **options)) == whole
    again = mixed.generate([CHATS[0], "The quick"], batch_size=1, **options)
    assert again == mixed.generate([CHATS[0], "The quick"], **options), "rows of other alignments change no draw"
    assert again[0] == whole


def test_a_sure_primary_at_its_start(likes_space):
    """The gate takes its bare space, which is no text."""
    ens = UniteEnsemble([likes_space, member("byte_level")])
    output = ens.generate([HI], gate=0.9, return_dict=True, max_new_tokens=4)
    assert output.gated_steps[0] >= 1
    vocabulary = ens.alignment.vocabularies[0]
    assert vocabulary.token_bytes[output.token_ids[0][0][0]] == b" "
    whole = b"".join(vocabulary.token_bytes[i] for i in output.token_ids[0][0])
    assert output.texts[0] == whole[1:].decode("utf-8", "replace")


@pytest.mark.parametrize("method", ["gac", "mined"])
def test_other_methods_leave_the_space_out_too(mixed, method):
    """Their steps keep the plain alignment; ids and texts are those of the start state all the same."""
    output = mixed.generate(CHATS, method=method, return_dict=True, max_new_tokens=6, primary=0)
    vocabularies = mixed.alignment.vocabularies
    for ids, text in zip(output.token_ids, output.texts):
        whole = b"".join(vocabularies[0].token_bytes[i] for i in ids[0]).removeprefix(b" ")
        assert whole.decode("utf-8", "replace") == text
        assert ids[1] == vocabularies[1].encode_continuation(whole)
        assert ids[2] == vocabularies[2].start.encode_continuation(whole)


# Likelihoods


def plain_rows(own, ids: list[int], eligible: torch.Tensor) -> torch.Tensor:
    logits = own.model(torch.tensor([ids]), use_cache=False).logits[0, :, : len(eligible)].detach().double()
    return logits.masked_fill(~eligible, -torch.inf).log_softmax(dim=1)


def at_places(ens, own, targets: list[int], primary: int):
    """Per target the text before it, every member's ids there, and the members at their first step."""
    vocabularies, text = ens.alignment.vocabularies, b""
    for n, target in enumerate(targets):
        written = [
            targets[:n] if m == primary else (v.start if starts else v).encode_continuation(text)
            for m, (v, starts) in enumerate(zip(vocabularies, own.starts))
        ]
        yield target, written, [starts and not ids for starts, ids in zip(own.starts, written)]
        data = vocabularies[primary].token_bytes[target]
        text += data.removeprefix(b" ") if n == 0 and own.starts[primary] else data


@pytest.mark.parametrize("primary", [0, 1, 2])
@pytest.mark.parametrize("text", [b"The quick", b"James", b"n the"])
def test_likelihoods_by_the_union(mixed, primary, text):
    own = encoded(mixed, HI)
    vocabulary = mixed.alignment.vocabularies[primary]
    targets = (vocabulary.start if own.starts[primary] else vocabulary).encode_continuation(text)
    log_prob = 0.0
    for n, (target, written, first) in enumerate(at_places(mixed, own, targets, primary)):
        meaning = mixed.alignment.at_start(first)
        logits = [
            m.model(torch.tensor([[*ids, *more]])).logits[:, -1].detach()
            for m, ids, more in zip(mixed.members, own.ids, written)
        ]
        classes = meaning.classes[primary]
        silent = int(classes[target]) < 0  # a bare space, which is emitted for what it begins
        include = torch.tensor([targets[n + 1] if silent else target])
        step = reference.unite_step(logits, meaning, k=4, primary=primary, include=include)
        union = step.union_ids[0, :, primary]
        same = union == target if silent else (union >= 0) & (classes[union] == classes[target])
        log_prob += math.log(float(step.union_probs[0][same].sum()))
    [found] = score_continuations(mixed, [(HI, targets)], primary=primary, k=4)
    assert found.log_prob == pytest.approx(log_prob, abs=1e-3)


def test_the_union_counts_a_bare_space_for_what_it_begins(likes_space):
    """`7` is ▁ 7 there. The first step has the slot 7, which the primary would begin by ▁, though nobody says 7."""
    ens = UniteEnsemble([likes_space, member("byte_level")])
    targets = ens.alignment.vocabularies[0].start.encode_continuation(b"7 the")
    assert ens.alignment.vocabularies[0].token_bytes[targets[0]] == b" "
    [whole] = score_continuations(ens, [(HI, targets)], k=1)
    [space] = score_continuations(ens, [(HI, targets[:1])], k=1)
    assert whole.log_prob < 0
    for found in (whole, space):
        assert found.log_prob > math.log(1e-30)


@pytest.mark.parametrize("max_places", [None, 1])
@pytest.mark.parametrize("text", [b"The quick", b"7 the", b"n James"])
@pytest.mark.parametrize("primary", [0, 1])
def test_full_likelihoods(likes_space, primary, text, max_places, monkeypatch):
    """The mean of the members' own probabilities, each of the text in its own ids, space included.

    A bare space counts with the token behind it: that the text begins with nothing is certain.
    """
    ens = UniteEnsemble([likes_space, member("byte_level")])
    own, vocabularies = encoded(ens, HI), ens.alignment.vocabularies
    targets = (vocabularies[0].start if primary == 0 else vocabularies[1]).encode_continuation(text)
    log_prob, pending = 0.0, []
    eligible = [torch.from_numpy(v.eligible) for v in vocabularies]
    for target, written, first in at_places(ens, own, targets, primary):
        if primary == 0 and vocabularies[0].token_bytes[target] == b" " and first[0]:
            pending = [target]
            continue
        data = vocabularies[primary].token_bytes[target]
        data = data.removeprefix(b" ") if first[primary] else data
        total = 0.0
        for m, (v, asked) in enumerate(zip(vocabularies, ens.members)):
            spelled = v.start if first[m] else v
            wanted = spelled.representatives().get(data)
            chain = [wanted] if wanted is not None else spelled.encode_continuation(data)
            if m == primary:
                chain = [*pending, target]
                before = [*own.ids[m], *written[m][: len(written[m]) - len(pending)]]
            else:
                before = [*own.ids[m], *written[m]]
            rows = plain_rows(asked, [*before, *chain], eligible[m])[len(before) - 1 :]
            total += 0.5 * math.exp(sum(float(rows[j, i]) for j, i in enumerate(chain)))
        log_prob, pending = log_prob + math.log(total), []
    if max_places is not None:
        monkeypatch.setattr("unite_ext.decoding.batch._PLACE_BYTES", 1)
    [found] = score_continuations(ens, [(HI, targets)], primary=primary, likelihood="full")
    assert found.log_prob == pytest.approx(log_prob, abs=1e-3)


# Exact boundaries


@pytest.mark.parametrize("primary", [0, 1])
def test_exact_boundaries(primary):
    """The members' first tokens have the bytes without the space: text and likelihoods are the plain rule's."""
    ens = ensemble(("sentencepiece", "direct"), ("byte_level", "direct"), boundaries="exact", primary=primary)
    members = plain_members(ens, HI)
    starts = encoded(ens, HI).starts
    assert starts == (True, False)
    led = [
        reference_exact.ExactMember(m.token_bytes, m.eos_token_ids, m.next_probs, m.representatives, b" " * first)
        for m, first in zip(members, starts)
    ]
    expected = reference_exact.generate(led, max_bytes=12, primary=primary)
    got = ens.generate(HI, max_new_tokens=40)
    assert got[:8] == expected.decode("utf-8", "replace")[:8]
    assert reference_exact.generate(members, max_bytes=12, primary=primary) != expected

    vocabulary = ens.alignment.vocabularies[primary]
    for text in (b"The quick", b"7 the"):
        targets = (vocabulary.start if starts[primary] else vocabulary).encode_continuation(text)
        at, log_prob = 0, 0.0
        while at < len(text):
            steps = reference_exact.walk(led, text[:at], forced=list(text[at:]), primary=primary)
            log_prob += math.fsum(math.log(p) for _, p in steps)
            at += len(steps)
        [found] = score_continuations(ens, [(HI, targets)])
        assert found.log_prob == pytest.approx(log_prob, abs=0.05)


# Grammars, traces, the server's tokens


@pytest.mark.parametrize("primary", [0, 1])
@pytest.mark.parametrize("pattern", ["(The|James) [0-9]{1,3}", "[0-9]{2}!", "中[a-z]{2}"])
def test_a_grammar_has_no_space_before_the_text(likes_space, primary, pattern):
    pytest.importorskip("xgrammar")
    other = member("byte_level")
    for members in ([member("sentencepiece"), other], [likes_space, other], [likes_space]):
        if primary < len(members):
            ens = UniteEnsemble(members)
            for speculate in (None, 3):
                text = ens.generate(HI, regex=pattern, max_new_tokens=40, primary=primary, speculate=speculate)
                assert re.fullmatch(pattern, text)


def test_a_trace_shows_texts_without_the_space(mixed, tmp_path):
    trace = mixed.trace(HI, max_new_tokens=6, k=5)
    assert "".join(step.piece for step in trace.steps) == trace.text
    first, later = trace.steps[0], trace.steps[1]
    assert first.starts == [True, False, True]
    assert not any(later.starts)
    texts = [trace.slot_text(first, slot) for slot in range(len(first.averages))]
    assert len(set(texts)) == len(texts)
    for slot, ids in enumerate(first.ids):
        for m, i in enumerate(ids):
            if i >= 0 and i not in trace.eos_token_ids[m]:
                sub = trace.is_first_sub_token(first, slot, m)
                assert texts[slot].startswith(trace.step_text(first, m, i)) or "<0x" in texts[slot]
                assert sub == (trace.step_text(first, m, i) != texts[slot])
    trace.save(tmp_path / "t.json")
    assert type(trace).load(tmp_path / "t.json") == trace


def test_the_servers_tokens_are_the_text(mixed):
    details = TokenDetails(mixed.members, mixed.alignment, 0)
    with mixed.stream(HI, trace=True, max_new_tokens=6) as stream:
        text = "".join(stream)
        tokens = details.of_request(stream.request)
    assert b"".join(token.data for token in tokens).decode("utf-8", "replace") == text
    own, _ = details.logprobs(tokens[0], 3)
    assert own.data == tokens[0].data
    assert isinstance(tokens[0], Token)
    assert own.logprob == pytest.approx(math.log(emission_probs(tokens[0].record, 0)[tokens[0].token_id]))


@pytest.mark.parametrize(
    ("starts", "present"),
    [((False, True, True), [0, 1]), ((True, False, False), [0, 2]), ((True, False, True), [0, 2])],
)
def test_first_steps_without_a_member(starts, present):
    """Those that are left mean by their ids what they mean to each other, and the columns are those of all."""
    kinds = [("sentencepiece", "direct"), ("byte_level", "direct"), ("gemma", "spaced")]
    whole, rest = ensemble(*kinds), ensemble(*(kinds[m] for m in present))
    generator = torch.Generator().manual_seed(3)
    scores = [LogitScores(torch.randn(4, n, generator=generator)) for n in whole.alignment.vocab_sizes]
    method, other = (ens.plan({}).token_method for ens in (whole, rest))
    got = Absences(whole.members, whole.alignment, 0).step(method, scores, [None] * 4, present, starts)
    meaning = rest.alignment.at_start([starts[m] for m in present])
    want = other.at_start(meaning).step([scores[m] for m in present], [None] * 4)
    assert (meaning is rest.alignment) == all(starts[m] for m in present)
    assert torch.equal(got.next_ids[:, present], want.next_ids)
    assert torch.equal(got.union_ids[:, :, present], want.union_ids)
    assert torch.equal(got.union_probs, want.union_probs)
    [gone] = {0, 1, 2} - set(present)
    assert (got.union_ids[:, :, gone] == -1).all()
    plain = other.step([scores[m] for m in present], [None] * 4)
    assert torch.equal(plain.union_probs, want.union_probs) == all(starts[m] for m in present)


def test_a_bare_space_is_the_first_step_of_its_writer_only():
    """The text is still empty then: members that have none of it are as they were."""
    ens = ensemble(("sentencepiece", "direct"), ("gemma", "spaced"), ("byte_level", "direct"))
    plan = ens.plan({})
    request = ens.new_engine(plan, max_requests=1).submit(encoded(ens, HI), plan.token_method)
    assert request.starts == (True, True, False)
    assert first_steps(request) == (True, True, False)
    assert first_steps(request, [b""]) == (False, True, False)
    assert first_steps(request, [b"", b"a"]) == (False, False, False)
    request.ids.append(0)
    assert first_steps(request) == (False, True, False)
    request.syncs[1].append(b"a")
    assert first_steps(request) == (False, False, False)
