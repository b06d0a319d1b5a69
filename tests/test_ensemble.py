"""The decode loop gives the text of the reference's decoding, and with one member that of the model itself."""

from __future__ import annotations

import gc

import pytest
import torch
import toy_tokenizers
from conftest import load_real_tokenizer
from torch._subclasses import FakeTensor
from toy_models import KINDS, cached_toy_model, toy_model

from unite_ext import UniteEnsemble, reference

PROMPTS = [
    "Once upon a time",
    "2024 was",
    "def main():\n",
    "A",
    "The committee met on the 3rd and, after a long day, agreed",
]
CLEAR = 1e-5  # a choice between probabilities closer than this may fall either way


def first_unclear(steps) -> int:
    """The first step whose two largest averages are too close to compare; its number of steps if there is none."""
    for i, step in enumerate(steps):
        top = step.union_probs[0].topk(2).values
        if top[0] - top[1] < CLEAR:
            return i
    return len(steps)


def assert_like_oracle(ens: UniteEnsemble, prompts: list[str], *, max_new_tokens: int, **options) -> int:
    """Every row of a batch is the oracle's decoding of its prompt alone, up to the first unclear step."""
    output = ens.generate(prompts, return_dict=True, max_new_tokens=max_new_tokens, **options)
    primary = options.get("primary", 0)
    compared = 0
    for row, prompt in enumerate(prompts):
        prompt_ids = [member.encode_prompt(prompt) for member in ens.members]
        models = [member.model for member in ens.members]
        text, ids, steps = reference.generate(
            models, ens.alignment, prompt_ids, max_new_tokens=max_new_tokens, **options
        )
        clear = first_unclear(steps)
        assert output.token_ids[row][primary][:clear] == ids[:clear]
        if clear == len(steps):
            assert output.texts[row] == text.decode("utf-8", "replace")
            assert output.token_ids[row][primary] == ids
            assert output.num_steps[row] == len(steps)
        compared += clear
    return compared


@pytest.fixture(scope="module")
def three():
    """Three members with different real tokenizers, one of them with a sliding window."""
    loaders = [("llama", "llama-3"), ("qwen2", "qwen2"), ("mistral-window", "mistral-7b-v0.3")]
    models = [cached_toy_model(kind, load_real_tokenizer, name, seed=i) for i, (kind, name) in enumerate(loaders)]
    return UniteEnsemble(models, [load_real_tokenizer(name) for _, name in loaders])


@pytest.mark.parametrize("kind", KINDS)
def test_one_member_is_its_own_greedy_generate(kind):
    tokenizer = load_real_tokenizer("qwen2" if kind != "llama" else "llama-3")
    model = cached_toy_model(kind, load_real_tokenizer, "qwen2" if kind != "llama" else "llama-3")
    ens = UniteEnsemble([model], [tokenizer])
    ineligible = [i for i in range(model.config.vocab_size) if ens.alignment.class_of(0, i) < 0]
    output = ens.generate(PROMPTS[:3], return_dict=True, max_new_tokens=60)
    for prompt, got, traces in zip(PROMPTS, output.token_ids, output.records):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=60, do_sample=False, suppress_tokens=ineligible,
            pad_token_id=0,
        )[0, ids.shape[1] :].tolist()  # fmt: skip
        if expected[-1] == tokenizer.eos_token_id:
            expected.pop()
        clear = next(
            (i for i, t in enumerate(traces) if sorted(t.union_probs)[-1] - sorted(t.union_probs)[-2] < CLEAR), 60
        )
        assert got[0][:clear] == expected[:clear]
        assert clear > 5


def test_the_same_model_twice_is_the_model_alone(three):
    member = three.members[0]
    alone = UniteEnsemble([member]).generate(PROMPTS, max_new_tokens=40)
    assert UniteEnsemble([member, member]).generate(PROMPTS, max_new_tokens=40) == alone


def test_three_members_are_the_oracle(three):
    assert assert_like_oracle(three, PROMPTS[:1], max_new_tokens=120) > 80


def test_ragged_batches_are_the_oracle(three):
    assert assert_like_oracle(three, PROMPTS, max_new_tokens=30) > 75


@pytest.mark.parametrize("primary", [1, 2])
def test_any_primary_is_the_oracle(three, primary):
    assert_like_oracle(three, PROMPTS[:3], max_new_tokens=40, primary=primary, weights=[1, 2, 1.5], k=5)


TOY_MEMBERS = ("byte_level", "sentencepiece", "gemma", "unigram", "wordpiece")


@pytest.mark.filterwarnings("ignore:.*cannot spell")
@pytest.mark.parametrize("primary", range(len(TOY_MEMBERS)))
def test_every_kind_of_tokenizer_together(primary):
    tokenizers = [getattr(toy_tokenizers, name)() for name in TOY_MEMBERS]
    kinds = ("llama", "mistral-window", "gemma2", "gpt-neox", "mixtral")
    ens = UniteEnsemble([toy_model(k, t, seed=i) for i, (k, t) in enumerate(zip(kinds, tokenizers))], tokenizers)
    assert_like_oracle(ens, ["James met", "The answer: 42", "x"], max_new_tokens=40, primary=primary)


@pytest.fixture(scope="module")
def pair():
    """Two small members of different kinds, quick enough for many runs."""
    tokenizers = [toy_tokenizers.byte_level(), toy_tokenizers.sentencepiece()]
    models = [toy_model("llama", tokenizers[0], seed=3), toy_model("mistral", tokenizers[1], seed=4)]
    return UniteEnsemble(models, tokenizers)


def test_one_prompt_gives_a_string_and_a_list_a_list(pair):
    text = pair.generate("James", max_new_tokens=8)
    assert isinstance(text, str)
    assert text
    assert pair.generate(["James"], max_new_tokens=8) == [text]
    assert pair.generate([], max_new_tokens=8) == []


def test_batch_size_changes_nothing(pair):
    prompts = [f"Number {i} is" + " very" * (i % 4) for i in range(7)]
    assert pair.generate(prompts, max_new_tokens=30) == pair.generate(prompts, max_new_tokens=30, batch_size=2)


def test_texts_are_the_bytes_of_the_ids(pair):
    output = pair.generate(PROMPTS, max_new_tokens=50, return_dict=True)
    for row, (text, ids) in enumerate(zip(output.texts, output.token_ids)):
        data = b"".join(pair.alignment.token_bytes(0, i) for i in ids[0])
        assert text == data.decode("utf-8", "replace")
        assert ids[1] == pair.alignment.encode_continuation(1, data)
        assert len(output.records[row]) == output.num_steps[row]


def test_traces_tell_the_steps(pair):
    output = pair.generate("James", max_new_tokens=12, return_dict=True)
    for token, trace in zip(output.token_ids[0][0], output.records[0]):
        assert trace.union_ids[trace.winner][0] == token
        assert trace.winner == max(range(len(trace.union_probs)), key=trace.union_probs.__getitem__)
        assert sum(trace.union_probs) == pytest.approx(1, abs=1e-5)
        assert len(trace.member_probs) == len(trace.union_probs)


@pytest.mark.parametrize("length", [1, 2, 5, 9])
def test_stop_strings_end_and_trim_the_text(pair, length):
    """The text ends right before the first occurrence of a stop string, also across tokens."""
    full = pair.generate("James", max_new_tokens=40, min_new_tokens=40)
    for start in range(0, len(full) - length, 7):
        stop = full[start : start + length]
        if "\ufffd" in stop:
            continue
        output = pair.generate(
            "James", max_new_tokens=40, min_new_tokens=40, stop=[stop, "never\x00seen"], return_dict=True
        )
        assert output.texts[0] == full[: full.index(stop)]
        assert output.finish_reasons == ["stop"]


@pytest.mark.parametrize("stop", [(), ("e", "\n"), ("a very long string that never comes", "th")])
@pytest.mark.parametrize("prompt", PROMPTS[:3])
def test_stream_yields_the_text_in_whole_characters(pair, prompt, stop):
    options = {"max_new_tokens": 60, "stop": stop}
    pieces = list(pair.stream(prompt, **options))
    assert "".join(pieces) == pair.generate(prompt, **options)
    assert all(pieces)


def test_stream_checks_at_once(pair):
    with pytest.raises(ValueError, match="max_new_tokens must be from 1"):
        pair.stream("x", max_new_tokens=0)


def test_min_new_tokens_keeps_eos_away():
    tokenizer = toy_tokenizers.byte_level()
    model = toy_model("llama", tokenizer, seed=1)
    eos = tokenizer.eos_token_id

    def prefer_eos(module, args, output):
        output.logits[..., eos] = 1e4

    model.register_forward_hook(prefer_eos)
    ens = UniteEnsemble([model, model], [tokenizer, tokenizer])
    output = ens.generate(["a", "bb"], max_new_tokens=10, return_dict=True)
    assert output.texts == ["", ""]
    assert output.finish_reasons == ["eos", "eos"]
    assert output.num_steps == [1, 1]
    output = ens.generate(["a", "bb"], max_new_tokens=10, min_new_tokens=4, return_dict=True)
    assert [len(ids[0]) for ids in output.token_ids] == [4, 4]
    assert output.finish_reasons == ["eos", "eos"]


def test_sampling_is_seeded_and_independent_of_the_batch(pair):
    options = {"do_sample": True, "max_new_tokens": 25, "temperature": 1.3}
    prompts = PROMPTS[:4]
    together = pair.generate(prompts, seed=7, **options)
    assert together == pair.generate(prompts, seed=7, **options)
    assert together == pair.generate(prompts, seed=7, batch_size=1, **options)
    assert together != pair.generate(prompts, seed=8, **options)
    for i, prompt in enumerate(prompts):
        [row] = pair.generate_each([prompt], indices=[i], seed=7, **options)
        assert row.decoded() == together[i]
    torch.manual_seed(0)
    first = pair.generate(prompts, **options)
    torch.manual_seed(0)
    assert first == pair.generate(prompts, **options)


def test_samples_follow_the_averaged_distribution(pair):
    trace = pair.generate("James", max_new_tokens=1, return_dict=True, temperature=1.0).records[0][0]
    draws = 1000
    output = pair.generate(
        ["James"] * draws, batch_size=100, max_new_tokens=1, do_sample=True, seed=1, return_dict=True
    )
    counts = torch.zeros(len(trace.union_probs), dtype=torch.float64)
    for t in output.records:
        counts[t[0].winner] += 1
    expected = torch.tensor(trace.union_probs, dtype=torch.float64) * draws
    busy = expected > 5
    chi2 = float(((counts - expected) ** 2 / expected)[busy].sum())
    freedom = int(busy.sum())
    assert chi2 < freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.filterwarnings("ignore:.*cannot spell")
def test_a_slot_that_the_primary_cannot_emit_is_never_drawn():
    tokenizers = [toy_tokenizers.wordpiece(), toy_tokenizers.byte_level()]
    models = [toy_model("llama", tokenizers[0], seed=1), toy_model("qwen2", tokenizers[1], seed=2)]
    ens = UniteEnsemble(models, tokenizers, weights=[1, 20])
    eos = set(ens.alignment.vocabularies[1].eos_token_ids)
    output = ens.generate(["the fox"] * 30, max_new_tokens=8, do_sample=True, seed=3, temperature=2.0, return_dict=True)
    offered = 0.0
    for record in (record for records in output.records for record in records):
        missing = [i for i, ids in enumerate(record.union_ids) if ids[0] < 0 and ids[1] not in eos]
        offered += sum(record.union_probs[i] for i in missing)
        assert record.winner not in missing
    assert offered > 5


def test_gate_takes_the_primarys_token_and_skips_the_others(pair):
    always = pair.generate(PROMPTS[:2], max_new_tokens=30, gate=0.0, return_dict=True)
    alone = UniteEnsemble([pair.members[0]]).generate(PROMPTS[:2], max_new_tokens=30)
    assert always.texts == alone
    assert always.gated_steps == always.num_steps
    never = pair.generate(PROMPTS[:2], max_new_tokens=30, gate=1.0, return_dict=True)
    assert never.texts == pair.generate(PROMPTS[:2], max_new_tokens=30)
    assert never.gated_steps == [0, 0]


def test_gated_steps_in_a_ragged_batch_are_those_of_each_row_alone(pair):
    """After a gate, the others read all missing ids in one pass."""
    together = pair.generate(PROMPTS, max_new_tokens=40, gate=0.6, return_dict=True)
    assert 0 < sum(together.gated_steps) < sum(together.num_steps)
    for row, prompt in enumerate(PROMPTS):
        alone = pair.generate(prompt, max_new_tokens=40, gate=0.6, return_dict=True)
        assert alone.texts[0] == together.texts[row]
        assert alone.gated_steps[0] == together.gated_steps[row]


def test_gate_skips_forward_passes(pair):
    passes = []
    handle = pair.members[1].model.register_forward_hook(lambda *_: passes.append(1) and None)
    try:
        output = pair.generate("James", max_new_tokens=30, gate=0.6, return_dict=True)
    finally:
        handle.remove()
    assert len(passes) == output.num_steps[0] - output.gated_steps[0]


def test_repetition_penalty_acts_in_every_member(pair):
    from transformers import RepetitionPenaltyLogitsProcessor

    processor = RepetitionPenaltyLogitsProcessor(1.5)
    plain = pair.generate("James", max_new_tokens=30)
    penalized = pair.generate("James", max_new_tokens=30, repetition_penalty=1.5)
    assert penalized != plain
    assert penalized == pair.generate("James", max_new_tokens=30, logits_processor=[processor, [processor]])
    assert plain == pair.generate("James", max_new_tokens=30, logits_processor=[None, None])


def test_processors_see_each_rows_own_ids(pair):
    seen: list[list[int]] = []

    def spy(ids, scores):
        seen.append(ids[0].tolist())
        return scores

    output = pair.generate(
        ["James", "a longer prompt"], max_new_tokens=3, min_new_tokens=3, logits_processor=[None, spy], return_dict=True
    )
    prompts = [pair.members[1].encode_prompt(p) for p in ("James", "a longer prompt")]
    assert seen[:2] == prompts
    for row in range(2):
        last = seen[-2 + row]
        text = b"".join(pair.alignment.token_bytes(0, i) for i in output.token_ids[row][0][:2])
        assert last == prompts[row] + pair.alignment.encode_continuation(1, text)


def test_messages_go_through_each_members_template(pair):
    messages = [{"role": "user", "content": "Hi"}]
    with pytest.raises(ValueError, match="has no chat template"):
        pair.generate(messages)
    templates = ["Q: {{ messages[0].content }} A:", "[{{ messages[0].content }}]"]
    for member, template in zip(pair.members, templates):
        member.tokenizer.chat_template = template
    try:
        chat = pair.generate(messages, max_new_tokens=10)
        assert pair.generate([messages], max_new_tokens=10) == [chat]
        expected = [
            m.tokenizer(t, add_special_tokens=False).input_ids for m, t in zip(pair.members, ("Q: Hi A:", "[Hi]"))
        ]
        assert [m.encode_prompt(messages) for m in pair.members] == expected
    finally:
        for member in pair.members:
            member.tokenizer.chat_template = None


def test_text_ends_where_a_context_is_full():
    tokenizers = [toy_tokenizers.byte_level(), toy_tokenizers.sentencepiece()]
    ens = UniteEnsemble([toy_model("llama", tokenizers[0]), toy_model("qwen2", tokenizers[1], context=20)], tokenizers)
    output = ens.generate("James", max_new_tokens=100, min_new_tokens=100, return_dict=True)
    assert output.finish_reasons == ["length"]
    assert len(ens.members[1].encode_prompt("James")) + len(output.token_ids[0][1]) >= 20


def test_member_without_pad_or_eos():
    tokenizers = [toy_tokenizers.wordpiece(), toy_tokenizers.byte_level()]
    assert tokenizers[0].eos_token_id is None
    models = [toy_model("llama", tokenizers[0], seed=1), toy_model("qwen2", tokenizers[1], seed=2)]
    ens = UniteEnsemble(models, tokenizers)
    assert len(ens.generate(["the fox", "a"], max_new_tokens=15)) == 2


def test_models_are_loaded_from_folders(pair, tmp_path):
    for m, member in enumerate(pair.members):
        member.model.save_pretrained(tmp_path / str(m))
        member.tokenizer.save_pretrained(tmp_path / str(m))
    names = [str(tmp_path / "0"), str(tmp_path / "1")]
    ens = UniteEnsemble.from_pretrained(names, k=7, dtype=[torch.float32, "bfloat16"], device="cpu")
    assert [m.model.dtype for m in ens.members] == [torch.float32, torch.bfloat16]
    assert "k=7" in repr(ens)
    ens = UniteEnsemble.from_pretrained(names, dtype=torch.float32)
    assert ens.generate("James", max_new_tokens=20) == pair.generate("James", max_new_tokens=20)


def test_out_of_memory_names_the_member(pair, monkeypatch):
    def explode(**_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(pair.members[1].model, "forward", explode)
    with pytest.raises(RuntimeError, match=r"MistralForCausalLM is out of memory on cpu with one request of \d+ ids"):
        pair.generate(["a", "b"], max_new_tokens=2)


BAD = {
    "unknown option": ({"max_tokens": 3}, TypeError, "unknown option 'max_tokens'; the options are .*max_new_tokens"),
    "no new tokens": ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be from 1"),
    "min above max": (
        {"max_new_tokens": 3, "min_new_tokens": 4},
        ValueError,
        "min_new_tokens must be from 0 to 3, got 4",
    ),
    "empty stop": ({"stop": ["a", ""]}, ValueError, "stop must not hold an empty string"),
    "stop a number": ({"stop": [3]}, TypeError, "stop must be a string or strings"),
    "temperature 0": ({"temperature": 0.0}, ValueError, "temperature must be above 0, got 0.0"),
    "top_p 0": ({"top_p": 0}, ValueError, "top_p must be above 0 and at most 1, got 0"),
    "top_p text": ({"top_p": "x"}, TypeError, "top_p must be a number, got str"),
    "gate 2": ({"gate": 2}, ValueError, "gate must be from 0 to 1, got 2"),
    "penalty 0": ({"repetition_penalty": 0}, ValueError, "repetition_penalty must be above 0"),
    "k 0": ({"k": 0}, ValueError, "k must be from 1 to 256"),
    "primary": ({"primary": 2}, ValueError, "primary must be from 0 to 1"),
    "weights": ({"weights": [1]}, ValueError, "weights must have one entry per member"),
    "processors": (
        {"logits_processor": [None]},
        ValueError,
        "logits_processor must have one entry per member, 2, got 1",
    ),
    "batch size": ({"batch_size": 0}, ValueError, "batch_size must be from 1"),
    "indices": ({"indices": [1, 2]}, ValueError, "indices must hold one number per prompt, 1, got 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_refused_before_any_pass(pair, case, monkeypatch):
    options, error, message = BAD[case]
    monkeypatch.setattr(pair.members[0].model, "forward", lambda **_: pytest.fail("a model ran"))
    with pytest.raises(error, match=message):
        pair.generate("x", **options)


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        (5, TypeError, "prompts must be text"),
        ("x " * 5000, ValueError, "takes .* tokens in LlamaForCausalLM, whose context holds 4096"),
    ],
)
def test_bad_prompts(pair, prompts, error, message):
    with pytest.raises(error, match=message):
        pair.generate(prompts, max_new_tokens=2)


def test_empty_prompt_starts_from_bos_or_says_why_not(pair):
    bos = pair.members[0].tokenizer.bos_token_id
    assert pair.members[0].encode_prompt("") == [bos]
    member = UniteEnsemble(
        [toy_model("qwen2", toy_tokenizers.byte_level_digits())], [toy_tokenizers.byte_level_digits()]
    ).members[0]
    with pytest.raises(ValueError, match="has no BOS token to start from"):
        member.encode_prompt("")


def test_bad_members(pair):
    model, tokenizer = pair.members[0].model, pair.members[0].tokenizer
    with pytest.raises(ValueError, match="models must hold 1 to 8 members, got 0"):
        UniteEnsemble([], [])
    with pytest.raises(ValueError, match="tokenizers must hold one per model, 1, got 2"):
        UniteEnsemble([model], [tokenizer] * 2)
    with pytest.raises(ValueError, match="tokenizers must be given"):
        UniteEnsemble([model])
    with pytest.raises(ValueError, match="is this the model's own tokenizer"):
        UniteEnsemble([model], [toy_tokenizers.sentencepiece()])
    with pytest.raises(TypeError, match="names must be a list of model names"):
        UniteEnsemble.from_pretrained("a")
    with pytest.raises(ValueError, match="dtype must be one value or one per member, 2, got 3"):
        UniteEnsemble.from_pretrained(["a", "b"], dtype=["float32"] * 3)
    with pytest.raises(ValueError, match="device and device_map exclude each other"):
        UniteEnsemble.from_pretrained(["a"], device="cpu", device_map="auto")


def live_bytes() -> int:
    """Memory behind every tensor that is alive."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        # isinstance asks proxies, which warn; what torch.compile leaves behind has no memory
        if issubclass(type(thing), torch.Tensor) and not issubclass(type(thing), FakeTensor):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def test_a_long_run_holds_nothing_but_its_caches(pair):
    """400 tokens, eight rows: what has been allocated between two steps is the growth of the caches."""
    plan = pair.plan({"max_new_tokens": 400, "min_new_tokens": 400})
    engine = pair.new_engine(plan, max_requests=8)
    requests = [engine.submit(f"Number {i}", plan.token_method, plan.generation) for i in range(8)]
    sizes = {}
    for step in range(1, 401):
        engine.step()
        if step in (100, 390):
            sizes[step] = live_bytes()
            lengths = [[len(r.token_ids(m)) + 40 for r in requests] for m in range(2)]
    assert not engine.has_work
    # Two layers, keys and values, 8 rows, 2 heads of 8 float32; some of the columns are holes.
    columns = sum(max(own) for own in lengths) / 0.75
    assert sizes[390] - sizes[100] < columns * 2 * 2 * 8 * 2 * 8 * 4 + 100_000
