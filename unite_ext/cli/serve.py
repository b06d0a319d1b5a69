"""`unite serve`: an ensemble behind OpenAI's HTTP interface."""

from __future__ import annotations

import logging
import socket
from typing import Annotated

import typer

from .console import errors, fail, plain
from .engines import Approximate, Engines, MemberEngine, MemberKey, MemberTimeout, MemberTokenizer
from .ensembles import SAMPLE_CHAT, load_ensemble
from .options import (
    Boundaries,
    ChatTemplateKwargs,
    ChatTemplates,
    Combine,
    Devices,
    Dtype,
    Duplicates,
    OptionalModels,
    Primary,
    Proposals,
    Score,
    TrustRemoteCode,
    Weights,
)
from .ranks import RankTimeout, check_launched, ending_ranks, follow_ranks, is_follower, leave_signals, refuse_ranks

_EXTRA = "unite serve needs fastapi, uvicorn and others: pip install 'unite_ext[serve]'"


def serve(
    model: OptionalModels = None,
    demo: Annotated[bool, typer.Option("--demo", help="Serve the models that ship with the package.")] = False,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for the whole network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any that is free.")] = 8000,
    name: Annotated[str, typer.Option(help="What clients call the model.")] = "unite",
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="UNITE_API_KEY",
            show_envvar=True,
            help="Answer only requests with this key; may be repeated. Others see what a command line holds: better in "
            "the environment, several with spaces between.",
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="Answer only this Host header; may be repeated. At 127.0.0.1 this machine's own by default."),
    ] = None,
    k: Proposals = 10,
    primary: Primary = 0,
    weight: Weights = None,
    score: Score = "logits",
    duplicates: Duplicates = "repeat",
    combine: Combine = "mean",
    boundaries: Boundaries = "plain",
    method: Annotated[
        list[str] | None,
        typer.Option(help="What decides steps: unite, or another token-level method. Repeated: requests may choose."),
    ] = None,
    method_options: Annotated[
        str | None, typer.Option(help="Options of the first method, as name:value;name:value.")
    ] = None,
    speculate: Annotated[
        str | None, typer.Option(help="Draft in greedy requests: auto, a number of tokens, ngram, or a member.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="For requests that give none; 0 is greedy.")] = 0.0,
    max_requests: Annotated[int, typer.Option(help="Texts that run side by side.")] = 64,
    max_waiting: Annotated[int, typer.Option(help="Texts that may wait; what comes then gets 429.")] = 256,
    max_tokens: Annotated[int, typer.Option(help="Most new tokens of a request.")] = 1024,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(help="Longest prompt; by default what the members' contexts hold.")
    ] = None,
    max_choices: Annotated[int, typer.Option(help="Most texts of one request.")] = 16,
    max_body: Annotated[int, typer.Option(help="Most bytes of a request.")] = 4 << 20,
    grace: Annotated[float, typer.Option(help="Seconds that running requests have after SIGTERM.")] = 30.0,
    chat_template: ChatTemplates = None,
    chat_template_kwargs: ChatTemplateKwargs = None,
    dtype: Dtype = "auto",
    device: Devices = None,
    trust_remote_code: TrustRemoteCode = False,
    member_engine: MemberEngine = None,
    tokenizer: MemberTokenizer = None,
    member_api_key_env: MemberKey = None,
    member_timeout: MemberTimeout = 60.0,
    approximate: Approximate = False,
    rank_timeout: RankTimeout = 60.0,
    log_level: Annotated[
        str, typer.Option(help="debug, info (a line per request), warning or error. No text of anybody's is logged.")
    ] = "info",
) -> None:
    """Serve an ensemble to any OpenAI client: /v1/chat/completions, /v1/completions, /v1/models, /health, /metrics.

    Requests join and leave at any step, each with its own options. docs/serve.md has keys, limits, proxies and metrics.

    Examples:

        unite serve --demo

        unite serve --model A --model B --port 8000

        UNITE_API_KEY=secret unite serve --model A --model B --host 0.0.0.0

        torchrun --nproc-per-node 2 -m unite_ext serve --model A --model B
    """
    listener = None
    try:
        check_launched(member_engine)
        if demo:
            refuse_ranks("serve --demo")
        if is_follower():
            from ..methods.registry import UNITE

            follow_ranks(
                model or (), method_options=method_options, device=device, dtype=dtype,
                trust_remote_code=trust_remote_code, tokenizer=tokenizer, serves=True, k=k, primary=primary,
                weights=weight, score=score, duplicates=duplicates, combine=combine, boundaries=boundaries,
                method=method[0] if method else UNITE, rank_timeout=rank_timeout,
            )  # fmt: skip
            return
        try:
            from ..serve.options import LOOPBACK, ServeOptions
            from ..serve.server import serve as run
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("unite_ext"):
                raise
            raise ValueError(f"{_EXTRA} (there is no {error.name})") from error
        from ..methods.registry import parse_options
        from ..options import parse_speculate

        levels = ("debug", "info", "warning", "error")
        if log_level not in levels:
            raise ValueError(f"--log-level must be one of {', '.join(levels)}, got {log_level!r}")
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
        logging.getLogger("unite_ext").setLevel(log_level.upper())
        hosts = allowed_host or (LOOPBACK if host in LOOPBACK else ())
        options = ServeOptions(
            name=name, api_keys=tuple(api_key or ()), allowed_hosts=tuple(h.lower() for h in hosts),
            methods=tuple(method or ("unite",)), temperature=temperature, speculate=parse_speculate(speculate),
            max_requests=max_requests, max_waiting=max_waiting, max_tokens=max_tokens,
            max_prompt_tokens=max_prompt_tokens, max_choices=max_choices, max_body=max_body, grace=grace,
        )  # fmt: skip
        listener = _listen(host, port)
        ensemble = load_ensemble(
            model, demo, prompts=[SAMPLE_CHAT] if chat_template or chat_template_kwargs else [],
            chat_template=chat_template, chat_template_kwargs=chat_template_kwargs, device=device, dtype=dtype,
            trust_remote_code=trust_remote_code, k=k, primary=primary, weights=weight, score=score,
            duplicates=duplicates, combine=combine, boundaries=boundaries,
            method=options.methods[0], method_options=parse_options(method_options),
            tokenizer=tokenizer, engines=Engines(member_engine, member_api_key_env, member_timeout, approximate),
            in_ranks=True, rank_timeout=rank_timeout,
        )  # fmt: skip
        shown, at = listener.getsockname()[:2]
        address = f"http://[{shown}]:{at}" if ":" in shown else f"http://{shown}:{at}"
        members = " + ".join(member.name for member in ensemble.members)
        errors.print(f"serving {plain(members)} as {plain(name)} at {address}/v1", soft_wrap=True, highlight=False)
        if not options.api_keys and host not in LOOPBACK:
            errors.print("everybody who reaches this address can use it: --api-key asks for a key", style="yellow")
        with ending_ranks(ensemble):
            if ensemble.ranks is not None:
                leave_signals()  # what the server does not take itself, when it has ended
            run(ensemble, options, listener)
    except typer.Exit:  # a RuntimeError of its own kind
        raise
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        raise fail(error) from None
    finally:
        if listener is not None:
            listener.close()


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket: a port in use is said before models are loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise ValueError(
            f"--host and --port must name a free address of this machine, got {host}:{port}: {error}"
        ) from error
    return listener
