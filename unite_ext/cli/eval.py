"""`unite eval`: evaluate members and methods on benchmarks with lm-evaluation-harness."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from .console import console, errors, fail, plain
from .engines import Approximate, Engines, MemberEngine, MemberKey, MemberTimeout, MemberTokenizer
from .eval_demo import evaluate_demo
from .options import (
    BatchSize,
    Boundaries,
    Chat,
    Combine,
    Devices,
    Dtype,
    Duplicates,
    MethodOptions,
    OptionalModels,
    Primary,
    Proposals,
    Score,
    TrustRemoteCode,
    Weights,
)
from .prompts import per_member
from .ranks import RankTimeout, check_launched, ending_ranks, follow_ranks, is_follower
from .resume import describe_run, keep_answers

if TYPE_CHECKING:
    from ..members.base import BaseMember

Results = dict[str, Any]
"""What lm_eval's `simple_evaluate` returns."""


def evaluate(
    model: OptionalModels = None,
    tasks: Annotated[
        str, typer.Option(help="Tasks of lm_eval, separated by commas; unite_paper is the paper's six benchmarks.")
    ] = "",
    demo: Annotated[
        bool,
        typer.Option("--demo", help="All methods on the bundled models and their test problems; no lm-eval needed."),
    ] = False,
    method: Annotated[
        str | None,
        typer.Option(help="unite (the default) or another method, see docs/methods.md. With --demo: run only this."),
    ] = None,
    method_options: MethodOptions = None,
    benchmarks: Annotated[
        Path | None, typer.Option(help="Folder with the data of the unite_... tasks; else UNITE_BENCHMARKS.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for results and samples. Answers are kept there, so that a run can be continued."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only this many problems per task.")] = None,
    k: Proposals = 10,
    primary: Primary = 0,
    weight: Weights = None,
    score: Score = "logits",
    duplicates: Duplicates = "repeat",
    combine: Combine = "mean",
    boundaries: Boundaries = "plain",
    likelihood: Annotated[
        str | None,
        typer.Option(
            help="full, or union. full, the default where it is defined: the mean of the members' own probabilities, "
            "as of a single model. union: normalised over a step's slots."
        ),
    ] = None,
    batch_size: BatchSize = 8,
    chat: Chat = False,
    dtype: Dtype = "auto",
    device: Devices = None,
    trust_remote_code: TrustRemoteCode = False,
    member_engine: MemberEngine = None,
    tokenizer: MemberTokenizer = None,
    member_api_key_env: MemberKey = None,
    member_timeout: MemberTimeout = 60.0,
    approximate: Approximate = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    rank_timeout: RankTimeout = 60.0,
) -> None:
    """Evaluate an ensemble, or one model alone, on benchmarks with lm-evaluation-harness.

    Needs pip install 'unite_ext[eval]'. With --output the folder holds what `unite select` reads, and a run that was
    stopped continues when it is started again. Answers of other models or options are not used.

    Example: unite eval --model A --model B --tasks unite_gsm8k --benchmarks data --output results --method gac
    """

    if demo:
        if model or tasks:
            raise fail("--model and --tasks must not be given with --demo, which has its own models and problems")
        evaluate_demo(method, output, limit, as_json)
        return
    if not model or not tasks:
        raise fail("--model and --tasks must be given, or --demo")
    method = method or "unite"
    step: dict[str, Any] = {
        "k": k, "primary": primary, "weights": weight, "score": score, "duplicates": duplicates, "combine": combine,
        "boundaries": boundaries,
    }  # fmt: skip
    shared: dict[str, Any] = {**step, "method": method, "rank_timeout": rank_timeout}
    try:
        check_launched(member_engine)
    except ValueError as error:
        raise fail(error) from None
    if is_follower():
        _follow(model, method_options, device, dtype, trust_remote_code, tokenizer, shared)
        return
    try:
        from lm_eval.evaluator import simple_evaluate
        from lm_eval.loggers import EvaluationTracker
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise fail(f"unite eval needs lm-eval: pip install 'unite_ext[eval]' ({error})") from None
    from ..harness.adapter import UniteLM, quiet_git
    from ..methods.registry import check_method, parse_options

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        parsed = parse_options(method_options)
        check_method(method, parsed, len(model))
        if benchmarks is not None:
            os.environ["UNITE_BENCHMARKS"] = str(benchmarks)
        names = [name.strip() for name in tasks.split(",") if name.strip()]
        others = not all(name.startswith("unite_") for name in names)  # reading all of the harness's tasks takes long
        bundled = Path(__file__).parent.parent / "harness" / "tasks"
        manager = TaskManager(include_path=str(bundled), include_defaults=others)
        loaded = manager.load(names)  # reads the data, before any model is loaded
        decisive: dict[str, object] = {
            **step, "method": method, "method_options": parsed, "dtype": dtype, "likelihood": likelihood,
            **({"member_engine": member_engine, "tokenizer": tokenizer} if member_engine or tokenizer else {}),
        }  # fmt: skip
        placed = None if not device else device[0] if len(device) == 1 else device
        engines = Engines(member_engine, member_api_key_env, member_timeout, approximate)
        tokenizers = [None if name == "own" else name for name in per_member("--tokenizer", tokenizer, model)]
        more: dict[str, Any] = {"tokenizer": tokenizers} if tokenizer else {}
        elsewhere = engines.places(model)
        members: list[str | BaseMember] = [
            engines.make(model, m, tokenizer=tokenizers[m], chat_template=None, chat_template_kwargs=None)
            if m in elsewhere
            else name
            for m, name in enumerate(model)
        ]
        lm = UniteLM(
            members, batch_size=batch_size, likelihood=likelihood, method_options=parsed, dtype=dtype,
            trust_remote_code=trust_remote_code, device=placed, ranks="led", **more, **shared,
        )  # fmt: skip
        tracker = EvaluationTracker(output_path=str(output)) if output else None
        answers = None
        if output:
            output.mkdir(parents=True, exist_ok=True)
            answers, unlike = keep_answers(output, describe_run(model, {**decisive, "chat": chat}))
            for differing in unlike:
                errors.print(f"[yellow]note:[/] answers of another run are not used: {plain(differing)}")
        with quiet_git(), ending_ranks(lm.ensemble):
            results: Results = simple_evaluate(
                lm,
                tasks=names,
                limit=limit,
                task_manager=manager,
                evaluation_tracker=tracker,
                apply_chat_template=chat,
                use_cache=None if answers is None else str(answers),
                bootstrap_iters=1000,
            )
    except (ValueError, TypeError, OSError, RuntimeError, KeyError) as error:
        raise fail(error) from None
    del loaded
    if tracker:
        options = {**decisive, "trust_remote_code": trust_remote_code, **({"device": placed} if placed else {})}
        _save(tracker, results, ";".join(model), method, options)
    if as_json:
        typer.echo(json.dumps(results["results"], default=str))
        return
    console.print(_table(results))


def _follow(
    model: list[str],
    method_options: str | None,
    device: list[str] | None,
    dtype: str,
    trust_remote_code: bool,
    tokenizer: list[str] | None,
    shared: dict[str, Any],
) -> None:
    """What other processes than the first do."""
    try:
        follow_ranks(
            model, method_options=method_options, device=device, dtype=dtype, trust_remote_code=trust_remote_code,
            tokenizer=tokenizer, **shared,
        )  # fmt: skip
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        raise fail(error) from None


def _save(tracker: Any, results: Results, name: str, method: str, options: dict[str, object]) -> None:
    """Write results and samples as `lm_eval --output_path --log_samples` does; `tracker` is lm_eval's."""
    label = name if method == "unite" else f"{name} ({method})"
    results["config"]["model_args"] = {"pretrained": label, **options}
    general = tracker.general_config_tracker
    general.model_name, general.model_name_sanitized = label, "".join(c if c.isalnum() else "_" for c in label)[-120:]
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in results["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])


def _table(results: Results) -> Table:
    table = Table(title="Results", title_justify="left")
    for heading in ("task", "metric"):
        table.add_column(heading)
    for heading in ("problems", "value", "95 % interval"):
        table.add_column(heading, justify="right")
    for task, values in results["results"].items():
        count = results.get("n-samples", {}).get(task, {}).get("effective")
        for key, value in values.items():
            if not isinstance(value, float) or "_stderr" in key:
                continue
            metric, _, rest = key.partition(",")
            error = values.get(f"{metric}_stderr,{rest}")
            around = f"± {1.96 * error:.3f}" if isinstance(error, float) else ""
            table.add_row(plain(task), plain(key), "" if count is None else str(count), f"{value:.3f}", around)
    return table
