"""`unite generate`: text from several models, on the terminal or row by row into a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._jsonl import parse_record, record_line, split_lines, takes_unicode
from .console import console, errors, fail
from .engines import Approximate, Engines, MemberEngine, MemberKey, MemberTimeout, MemberTokenizer
from .options import (
    BatchSize,
    Boundaries,
    Chat,
    ChatTemplateKwargs,
    ChatTemplates,
    Combine,
    Devices,
    Dtype,
    Duplicates,
    MethodOptions,
    Models,
    Primary,
    Proposals,
    Score,
    TrustRemoteCode,
    Weights,
)
from .prompts import prepare_members, read_prompts, read_templates
from .ranks import RankTimeout, check_launched, ending_ranks, follow_ranks, is_follower
from .resume import check_rows, keep_run
from .trace import save_and_say

if TYPE_CHECKING:
    from ..decoding.ensemble import UniteEnsemble
    from ..decoding.request import Request
    from ..members.base import Prompt
    from ..trace import Trace

TERMINAL = Path("-")
_ROW = "a row that `unite generate` wrote"


def generate(
    model: Models,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be repeated.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="Prompts: one per line, or JSON lines with 'prompt' or 'messages'.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write JSON lines here, each row as it finishes.")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            help="Keep the rows that --output already holds, and go on; refused with other models or options."
        ),
    ] = False,
    chat: Chat = False,
    system: Annotated[str | None, typer.Option(help="System message, with --chat.")] = None,
    chat_template: ChatTemplates = None,
    chat_template_kwargs: ChatTemplateKwargs = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines with ids and finish reasons.")] = False,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Who decided each token: a page (.html), data for `unite trace` (.json), or - for the terminal."
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of the primary per row.")] = 256,
    min_new_tokens: Annotated[int, typer.Option(help="No member may end the text before.")] = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help=r"End the text before this string; may be repeated. \n is a newline.")
    ] = None,
    k: Proposals = 10,
    primary: Primary = 0,
    weight: Weights = None,
    score: Score = "logits",
    duplicates: Duplicates = "repeat",
    combine: Combine = "mean",
    boundaries: Boundaries = "plain",
    method: Annotated[str, typer.Option(help="unite, or another method; docs/methods.md lists them.")] = "unite",
    method_options: MethodOptions = None,
    do_sample: Annotated[bool, typer.Option(help="Sample from the average instead of taking its largest.")] = False,
    temperature: Annotated[float, typer.Option(help="With --do-sample: below 1 sharpens.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="With --do-sample: among this many slots, 0 for all.")] = 0,
    top_p: Annotated[float, typer.Option(help="With --do-sample: among the fewest slots with this mass.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="With --do-sample: row i draws with seed + i.")] = None,
    repetition_penalty: Annotated[float, typer.Option(help="As in transformers; 1 is none.")] = 1.0,
    gate: Annotated[
        float | None, typer.Option(help="Do not ask the others where the primary is surer than this.")
    ] = None,
    speculate: Annotated[
        str | None,
        typer.Option(
            help="Draft some tokens and ask all members about them in one pass: the same text in fewer passes. auto, a "
            "number of tokens, ngram, or a member that drafts."
        ),
    ] = None,
    json_schema: Annotated[
        Path | None, typer.Option(help="A file with a JSON schema: every text is JSON that follows it.")
    ] = None,
    regex: Annotated[str | None, typer.Option(help="Every text matches this regular expression as a whole.")] = None,
    grammar: Annotated[
        Path | None, typer.Option(help="A file with a grammar (GBNF): every text follows its rule root.")
    ] = None,
    batch_size: BatchSize = 8,
    dtype: Dtype = "auto",
    device: Devices = None,
    trust_remote_code: TrustRemoteCode = False,
    member_engine: MemberEngine = None,
    tokenizer: MemberTokenizer = None,
    member_api_key_env: MemberKey = None,
    member_timeout: MemberTimeout = 60.0,
    approximate: Approximate = False,
    on_member_failure: Annotated[
        str, typer.Option(help="stop: a text ends with an error if a member stays away; drop: the others go on.")
    ] = "stop",
    rank_timeout: RankTimeout = 60.0,
) -> None:
    """Let several models write one text together.

    A single prompt streams to the terminal. Several prompts, --json or --output give JSON lines, one per prompt as it
    finishes; Ctrl-C keeps what is done, and --resume goes on from there. A file beside --output, ending in .run.json,
    says which models and options its rows are of.

    Examples:

        unite generate --model A --model B --prompt "Once upon a time"

        unite generate --model A --model B --file prompts.txt --output texts.jsonl --resume

        echo "Why is the sky blue?" | unite generate --model A --model B --chat

        unite generate --model A --model B --prompt "Once upon a time" --trace trace.html

        torchrun --nproc-per-node 2 -m unite_ext generate --model A --model B --prompt "Once upon a time"
    """
    given = dict(locals())
    shared: dict[str, Any] = {
        "k": k, "primary": primary, "weights": weight, "score": score, "duplicates": duplicates, "combine": combine,
        "boundaries": boundaries, "method": method, "rank_timeout": rank_timeout,
    }  # fmt: skip
    try:
        check_launched(member_engine, on_member_failure)
        if is_follower():
            follow_ranks(
                model, method_options=method_options, device=device, dtype=dtype, trust_remote_code=trust_remote_code,
                tokenizer=tokenizer, **shared,
            )  # fmt: skip
            return
        prompts = read_prompts(prompt, file, chat, system)
        streams = len(prompts) == 1 and output is None and not as_json
        _check_trace(trace, method, streams)
        done, run = _read_done(output, resume, prompts), None
        structure = {
            "json_schema": _read_text("--json-schema", json_schema), "regex": regex,
            "grammar": _read_text("--grammar", grammar),
        }  # fmt: skip
        given |= structure
        if output:
            if chat_template:
                given["chat_template"] = read_templates(chat_template)
            run = check_rows(output, given)
        todo = [i for i in range(len(prompts)) if i not in done]
        if not todo:
            errors.print(f"nothing to do: {output} holds all {len(prompts)} rows")
            return
        from ..decoding.ensemble import UniteEnsemble
        from ..methods.registry import is_answer_method, parse_options
        from ..options import GenerationOptions, StepOptions, check_boundaries, parse_speculate

        options: dict[str, Any] = {
            "max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens, "do_sample": do_sample,
            "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed, "gate": gate,
            "repetition_penalty": repetition_penalty, "stop": [s.replace("\\n", "\n") for s in stop or []],
            "speculate": parse_speculate(speculate), "on_member_failure": on_member_failure, **structure,
        }  # fmt: skip
        # What is wrong is said before anything is loaded.
        check_boundaries(StepOptions(boundaries=boundaries), GenerationOptions(**options))
        sources = prepare_members(
            model, prompts, chat_template=chat_template, chat_template_kwargs=chat_template_kwargs, device=device,
            dtype=dtype, trust_remote_code=trust_remote_code, tokenizer=tokenizer, in_ranks=True,
            engines=Engines(member_engine, member_api_key_env, member_timeout, approximate),
        )  # fmt: skip
        loaded = UniteEnsemble.from_pretrained(
            sources, ranks="led", method_options=parse_options(method_options), **shared
        )
        with ending_ranks(loaded) as ensemble:
            if streams:
                if is_answer_method(method):
                    typer.echo(ensemble.generate(prompts[0], **options))  # answers are compared: nothing to stream
                else:
                    _stream(ensemble, prompts[0], options, trace)
                return
            requests = ensemble.generate_each(
                [prompts[i] for i in todo], indices=todo, batch_size=batch_size, progress=sys.stderr.isatty(),
                trace=trace is not None, **options,
            )  # fmt: skip
            if output:
                keep_run(output, run)  # all prompts have been taken by all members
            traces: dict[int, Trace] = {}
            try:
                shown = _traced(requests, ensemble, prompts, options, traces) if trace else requests
                _write_rows(shown, prompts, output, len(done))
            finally:  # also of what was finished before Ctrl-C
                if trace and traces:
                    save_and_say([traces[i] for i in sorted(traces)], trace)
    except typer.Exit:  # a RuntimeError of its own kind
        raise
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        raise fail(error) from None


def _read_text(option: str, path: Path | None) -> str | None:
    """What a file of an option holds; None without one."""
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{option}: {path} must be UTF-8 text: {error}") from None


def _check_trace(trace: Path | None, method: str, streams: bool) -> None:
    """Complain before anything is loaded."""
    from ..methods.registry import is_answer_method
    from ..trace.trace import check_path

    if trace is None:
        return
    if is_answer_method(method):
        raise ValueError(f"--trace: method {method} chooses among whole answers, it has no steps to trace")
    if trace != TERMINAL:
        check_path(trace)
    elif not streams:
        raise ValueError("--trace - shows one text: name a .html or .json file for several, --json or --output")


def _stream(ensemble: UniteEnsemble, prompt: Prompt, options: dict[str, Any], trace: Path | None) -> None:
    """One text on the terminal as it comes, or with its trace when it is done."""
    from ..trace.terminal import print_trace

    stream = ensemble.stream(prompt, trace=trace is not None, **options)
    for piece in stream:
        if trace != TERMINAL:
            typer.echo(piece, nl=False)  # as it is: rich would expand tabs
    if trace != TERMINAL:
        typer.echo()
    if trace is not None:
        made = ensemble.trace_of(stream.request, prompt, **options)
        if trace == TERMINAL:
            print_trace(made, console)
        else:
            save_and_say([made], trace)


def _traced(
    requests: Iterator[Request],
    ensemble: UniteEnsemble,
    prompts: Sequence[Prompt],
    options: dict[str, Any],
    traces: dict[int, Trace],
) -> Iterator[Request]:
    """The requests as they come, each one's trace put aside."""
    for request in requests:
        traces[request.index] = ensemble.trace_of(request, prompts[request.index], **options)
        yield request


def _write_rows(requests: Iterator[Request], prompts: Sequence[Prompt], output: Path | None, done: int) -> None:

    file = output.open("a", encoding="utf-8", newline="\n") if output else sys.stdout
    ascii_only = output is None and not takes_unicode(file)
    written = 0
    try:
        for request in requests:
            record = {
                "index": request.index, "prompt": prompts[request.index], "text": request.decoded(),
                "finish_reason": request.finish_reason, "num_steps": request.num_steps,
                "gated_steps": request.gated_steps,
                "token_ids": [request.token_ids(m) for m in range(len(request.syncs))],
                **({"missing_from": request.missing_from()} if request.missing else {}),
            }  # fmt: skip
            file.write(record_line(record, ascii_only=ascii_only))
            file.flush()
            written += 1
    except KeyboardInterrupt:
        kept = f"{written + done} of {len(prompts)} rows are done"
        errors.print(
            f"\nstopped: {kept}" + (f" and kept in {output}; --resume goes on" if output else ""), soft_wrap=True
        )
        raise typer.Exit(code=130) from None
    finally:
        if output:
            file.close()


def _read_done(output: Path | None, resume: bool, prompts: Sequence[Prompt]) -> set[int]:
    """The rows that the output file holds already; a last line that a crash cut short is taken away."""
    if resume and output is None:
        raise ValueError("--resume needs --output")
    if output is None:
        return set()
    if not output.parent.is_dir():
        raise ValueError(f"--output: the folder {output.parent} does not exist")
    if not output.exists():
        return set()
    if output.is_dir():
        raise ValueError(f"--output must be a file, got the folder {output}")
    if not resume:
        raise ValueError(f"{output} exists: --resume goes on with it, or name another file")
    data = output.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    done = set()
    for number, line in enumerate(split_lines(whole, place=output), 1):
        record = parse_record(line, place=f"{output}, line {number}", expected=_ROW)
        if not isinstance(record, dict) or not isinstance(record.get("index"), int) or "prompt" not in record:
            raise ValueError(f"{output}, line {number}: must be {_ROW}, got other JSON")
        index = record["index"]
        if not (0 <= index < len(prompts)) or prompts[index] != record["prompt"]:
            raise ValueError(f"{output}, line {number}: row {index} belongs to another prompt; name another file")
        done.add(index)
    if len(whole) < len(data):
        with output.open("r+b") as file:
            file.truncate(len(whole))
    return done
