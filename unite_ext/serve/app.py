"""The application: its routes, and what each does with the engine's thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion
from prometheus_client import CONTENT_TYPE_LATEST

from ..decoding.ensemble import UniteEnsemble
from ..decoding.tracing import make_trace
from ..members.base import Prompt
from ..members.names import short_names
from ..trace import Trace
from . import page
from .engine_thread import EngineThread
from .errors import JSON, ApiError, ErrorBody, install, shutting_down
from .guard import Guard
from .jobs import Choice, Job, News
from .metrics import Metrics
from .openapi import describe
from .options import ServeOptions
from .prepare import Preparer, num_texts, prompts_of
from .replies import ChatReply, CompletionReply, Reply, ended_request
from .schema import ChatBody, CompletionBody, Sampling
from .stream import DONE, EventStream, event, until_left, with_errors
from .token_details import TokenDetails, TraceFeed, trace_head

ENDPOINTS = ("/", "/health", "/metrics", "/openapi.json", "/v1/chat/completions", "/v1/completions", "/v1/models")
_ERRORS: dict[int | str, dict[str, object]] = {
    status: {"model": ErrorBody} for status in (400, 401, 404, 408, 413, 429, 500, 503)
}


class Service:
    """What the routes of one server share.

    Parameters
    ----------
    ensemble : UniteEnsemble
    options : ServeOptions

    Raises
    ------
    TypeError, ValueError
        An option does not fit the ensemble.
    """

    def __init__(self, ensemble: UniteEnsemble, options: ServeOptions) -> None:
        self.ensemble = ensemble
        self.options = options
        self.preparer = Preparer(ensemble, options)
        self.metrics = Metrics([member.name for member in ensemble.members])
        plan = self.preparer.default
        self.engine = EngineThread(ensemble, plan, options, self.metrics)
        self.details = TokenDetails(ensemble.members, ensemble.alignment, plan.step.primary)
        # One thread: tokenizers are not made for several.
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="unite-prepare")
        self._num_jobs = 0
        self._created = int(time.time())

    async def answer(self, body: ChatBody | CompletionBody, request: Request) -> Response:
        """Answer a client's request.

        Raises
        ------
        ApiError
        """
        if body.model != self.options.name:
            raise ApiError(
                404, f"the model must be {self.options.name}, got {body.model!r}", param="model", code="model_not_found"
            )
        texts = num_texts(body, self.options)
        self.engine.reserve(texts)
        loop = asyncio.get_running_loop()
        try:
            job = await loop.run_in_executor(self.pool, self._job, body, loop)
        except BaseException:
            self.engine.release(texts)
            raise
        reply: Reply
        if isinstance(body, ChatBody):
            reply = ChatReply(job, self.details, body.model, body)
        else:
            reply = CompletionReply(job, self.details, body.model, body)
        self.engine.submit(job)
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            events = with_errors(self._events(job, reply, traces=body.unite.trace, usage=usage))
            return EventStream(events, partial(self.engine.cancel, job), self.options.stall_timeout)
        return await self._whole(job, reply, body, request)

    def _job(self, body: ChatBody | CompletionBody, loop: asyncio.AbstractEventLoop) -> Job:
        """A job of a body, on the preparing thread."""
        plan = self.preparer.plan(body)
        encoded = self.preparer.encode(prompts_of(body))
        choices = [Choice(p * body.n + c, p, own) for p, own in enumerate(encoded) for c in range(body.n)]
        wants = body.unite.trace or not (body.logprobs is None or body.logprobs is False)
        self._num_jobs += 1
        compared = self._num_jobs % self.options.compare_every == 0
        self.metrics.prompt_tokens.inc(sum(len(own.ids[plan.step.primary]) for own in encoded))
        return Job(
            choices=choices, plan=plan, seed=plan.draw_seed(), streams=body.stream, wants_tokens=wants,
            keeps_records=wants or compared, buffer=self.options.stream_buffer, loop=loop,
        )  # fmt: skip

    async def _whole(self, job: Job, reply: Reply, body: Sampling, request: Request) -> Response:
        """The answer in one piece; nothing if the client leaves."""
        collecting = asyncio.ensure_future(_until_ended(job))
        leaving = asyncio.ensure_future(until_left(request.receive))
        try:
            await asyncio.wait((collecting, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not collecting.done():
                return Response(status_code=499)  # which nobody reads
            collecting.result()
        finally:
            self.engine.cancel(job)
            for task in (collecting, leaving):
                task.cancel()
            await asyncio.gather(collecting, leaving, return_exceptions=True)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.pool, self._written, job, reply, body)

    def _written(self, job: Job, reply: Reply, body: Sampling) -> Response:
        """The answer as bytes, on the preparing thread: with traces it is long."""
        traces = self._traces(job, prompts_of(body)) if body.unite.trace else None
        return JSON(reply.whole(traces))

    def _traces(self, job: Job, prompts: list[Prompt]) -> list[Trace]:
        return [
            make_trace(
                ended_request(choice), prompts[choice.prompt], job.plan, self.ensemble.members, self.ensemble.alignment
            )
            for choice in job.choices
        ]

    async def _events(self, job: Job, reply: Reply, *, traces: bool, usage: bool) -> AsyncIterator[bytes]:
        """A stream's events: what is there at once goes out at once."""
        feeds = [TraceFeed(self.details) if traces else None for _ in job.choices]
        for choice in job.choices:
            if (first := reply.first_chunk(choice)) is not None:
                yield event(first)
        if traces:
            yield event(
                {**reply.head, "object": reply.chunk_kind, "choices": [], "unite": trace_head(self.details, job.plan)}
            )
        left = len(job.choices)
        while left:
            found = await job.news()
            yield b"".join([event(self._chunk(job, reply, feeds, news, usage)) for news in found])
            left -= sum(news.request is not None for news in found)
        if usage:
            yield event(reply.last_chunk())
        yield DONE

    def _chunk(
        self, job: Job, reply: Reply, feeds: list[TraceFeed | None], news: News, usage: bool
    ) -> dict[str, object]:
        feed = feeds[news.choice]
        unite = None if feed is None else feed.next(news.tokens, news.request)
        ended = news.request
        tokens = news.tokens if ended is None else self.details.kept(news.tokens, ended)
        finish = None if ended is None else reply.finish_of(ended)
        return reply.chunk(job.choices[news.choice], news.piece, tokens, finish, unite, usage)

    def model(self) -> dict[str, object]:
        """The ensemble as one of OpenAI's models, with what it consists of."""
        members = short_names(self.details.names)
        step = self.preparer.default.step
        ours = {
            "members": members, "primary": members[step.primary], "k": step.k,
            "weights": step.step_weights(len(members)), "methods": list(self.options.methods),
            "max_tokens": self.options.max_tokens,
        }  # fmt: skip
        model = Model(id=self.options.name, created=self._created, object="model", owned_by="unite")
        return {**model.model_dump(), "unite": ours}


async def _until_ended(job: Job) -> None:
    left = len(job.choices)
    while left:
        left -= sum(news.request is not None for news in await job.news())


def create_app(ensemble: UniteEnsemble, options: ServeOptions | None = None) -> FastAPI:
    """Make the application that serves an ensemble; `app.state.service` is its `Service`.

    Parameters
    ----------
    ensemble : UniteEnsemble
    options : ServeOptions, optional

    Raises
    ------
    TypeError, ValueError
        An option does not fit the ensemble.
    """
    service = Service(ensemble, options or ServeOptions())

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        service.engine.start()
        yield
        await asyncio.get_running_loop().run_in_executor(None, service.engine.stop)
        service.pool.shutdown(wait=False)

    # Swagger's and ReDoc's pages load scripts from elsewhere.
    app = FastAPI(title="UNITE", docs_url=None, redoc_url=None, lifespan=running, responses=_ERRORS)
    app.state.service = service
    install(app)
    _add_routes(app, service)
    page.add_route(app)
    describe(app, secured=bool(service.options.api_keys))
    app.add_middleware(Guard, options=service.options, metrics=service.metrics, endpoints=_endpoint)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", response_model=None, responses={200: {"model": ChatCompletion}})
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        """Answer a chat."""
        return await service.answer(body, request)

    @app.post("/v1/completions", response_model=None, responses={200: {"model": Completion}})
    async def completions(body: CompletionBody, request: Request) -> Response:
        """Continue texts."""
        return await service.answer(body, request)

    @app.get("/v1/models", response_model=None)
    async def models() -> Response:
        """The ensemble: the one model of this server."""
        return JSON({"object": "list", "data": [service.model()]})

    @app.get("/v1/models/{model:path}", response_model=None, responses={200: {"model": Model}})
    async def one_model(model: str) -> Response:
        """The ensemble by its name."""
        if model != service.options.name:
            message = f"the model must be {service.options.name}, got {model!r}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return JSON(service.model())

    @app.get("/health", response_model=None)
    async def health() -> Response:
        """Whether requests are taken."""
        if not service.engine.is_ready:
            raise shutting_down()
        return JSON({"status": "ok"})

    @app.get("/metrics", response_model=None, response_class=PlainTextResponse)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _endpoint(path: str) -> str:
    """The path as metrics and log have it: no part of it is a client's."""
    return path if path in ENDPOINTS else "/v1/models" if path.startswith("/v1/models/") else "other"
