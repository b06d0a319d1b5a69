"""Ask `unite serve` thousands of things at once, many of them bad, and check every answer.

    python benchmarks/soak_serve.py                     10,000 requests
    python benchmarks/soak_serve.py --requests 300      a small one, in which memory is not judged

The server runs in a process of its own, with a key, on the bundled models. 64 clients draw from: good requests (whole
and in streams, greedy and sampled, several texts, stop strings), clients that leave at a random moment, that read
slowly, bad bodies, wrong keys, prompts that are too long and bodies that are too large. Every answer that comes whole
must be the text that the ensemble gives offline, every bad request must get its status, and afterwards nothing may run,
wait or have grown: the memory after the last request may be at most --growth MB above what it was after a third.

Then the server ends, twice: after one SIGTERM what runs must finish, with the same texts; after two of them every
stream must end with an error or its whole text. Exits with 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lib.serve_client import Answer, Server, post, serving

from unite_ext import UniteEnsemble
from unite_ext.demo import COMPARABLE, load_member
from unite_ext.demo.problems import problem_set
from unite_ext.demo.run import DEV_SEED
from unite_ext.serve.engine_thread import REST

KEY = "sk-of-the-soak"
CLIENTS = 64
SETTLED = 3000  # with fewer requests the memory still grows to what so many clients need
PATH = "/v1/completions"
OPTIONS = (
    {}, {"stop": " The answer"}, {"temperature": 1.0, "seed": 7}, {"temperature": 0.7, "top_p": 0.8, "seed": 1, "n": 3},
    {"unite": {"k": 4}}, {"unite": {"weights": [2, 1, 1]}}, {"max_tokens": 5},
)  # fmt: skip
BAD_BODIES: tuple[bytes | dict[str, Any], ...] = (
    b"", b"{", b"[]", b"\xff", b"null", {"model": "unite"}, {"model": "unite", "prompt": "A", "temperature": 9},
    {"model": "unite", "prompt": "A", "logit_bias": {"1": 1}}, {"model": "unite", "prompt": "A", "invented": 0},
    {"model": "unite", "prompt": "A", "unite": {"weights": [1]}},
    {"model": "unite", "prompt": "A", "max_tokens": 10**9},
)  # fmt: skip
KINDS = {
    "whole": 5,
    "stream": 8,
    "leave": 4,
    "slow": 1,
    "bad body": 2,
    "wrong key": 1,
    "long prompt": 1,
    "large body": 1,
}


@dataclass(frozen=True)
class Question:
    """A good request, and the texts that it must get."""

    body: dict[str, Any]
    texts: dict[int, str]


def questions(ensemble: UniteEnsemble, count: int) -> list[Question]:
    """Good requests with what the ensemble says offline."""
    prompts = [problem.prompt for problem in problem_set("dev", DEV_SEED, 360)][:count]
    found = []
    for number, options in enumerate(OPTIONS):
        own = prompts[number :: len(OPTIONS)]
        texts = offline(ensemble, own, options)
        for prompt, each in zip(own, texts):
            body = {"model": "unite", "max_tokens": 60, **options, "prompt": prompt}
            found.append(Question(body, dict(enumerate(each))))
    return found


def offline(ensemble: UniteEnsemble, prompts: Sequence[str], options: dict[str, Any]) -> list[list[str]]:
    """Per prompt its texts."""
    given = {"max_new_tokens": 60, **options, **options.get("unite", {})}
    given["max_new_tokens"] = given.pop("max_tokens", 60)
    given.pop("unite", None)
    n, given["do_sample"] = given.pop("n", 1), "temperature" in given
    each = []
    for prompt in prompts:  # text i of a request draws with seed + i, whatever else is asked
        requests = ensemble.generate_each([prompt] * n, **given)
        each.append([r.decoded() for r in sorted(requests, key=lambda r: r.index)])
    return each


class Soak:
    """What the clients of one server found."""

    def __init__(self, port: int, asked: Sequence[Question], seed: int) -> None:
        self.port = port
        self.asked = asked
        self.rng = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def client(self, kinds: Sequence[str]) -> None:
        """One request after the other."""
        for kind in kinds:
            await getattr(self, "_" + kind.replace(" ", "_"))()
            self.counts[kind] += 1

    async def _good(self, *, stream: bool, **how: Any) -> tuple[Question, Answer]:
        question = self.rng.choice(self.asked)
        while True:
            answer = await post(self.port, PATH, {**question.body, "stream": stream}, key=KEY, **how)
            if answer.status != 429:
                return question, answer
            self.counts["429"] += 1
            await asyncio.sleep(self.rng.random())

    def _check(self, question: Question, answer: Answer, what: str) -> None:
        if answer.status != 200 or answer.error or not answer.done:
            self.wrong.append(f"{what}: lost, {answer.status} {answer.error}")
        elif answer.texts != question.texts or answer.finished != question.texts.keys():
            self.wrong.append(f"{what}: {answer.texts} instead of {question.texts} for {question.body}")

    async def _whole(self) -> None:
        self._check(*await self._good(stream=False), "whole")

    async def _stream(self) -> None:
        self._check(*await self._good(stream=True), "stream")

    async def _slow(self) -> None:
        self._check(*await self._good(stream=True, read_delay=0.02, receive_buffer=4096), "slow")

    async def _leave(self) -> None:
        stream = self.rng.random() < 0.6
        question, answer = await self._good(stream=stream, leave_after=self.rng.expovariate(4.0))
        if answer.done:
            self._check(question, answer, "answered before it left")
        elif any(not question.texts[i].startswith(text) for i, text in answer.texts.items()):
            self.wrong.append(f"left: {answer.texts} does not begin {question.texts}")

    async def _expect(self, status: int, body: bytes | dict[str, Any], key: str | None = KEY) -> None:
        answer = await post(self.port, PATH, body, key=key)
        if answer.status != status or not answer.error:
            self.wrong.append(f"{answer.status} instead of {status} for {str(body)[:80]}")

    async def _bad_body(self) -> None:
        await self._expect(400, self.rng.choice(BAD_BODIES))

    async def _wrong_key(self) -> None:
        await self._expect(401, self.asked[0].body, self.rng.choice([None, "wrong", KEY + "x"]))

    async def _long_prompt(self) -> None:
        await self._expect(400, {"model": "unite", "prompt": "word " * self.rng.randrange(300, 200_000)})

    async def _large_body(self) -> None:
        await self._expect(413, {"model": "unite", "prompt": "a" * (5 << 20)})


def run(server: Server, asked: Sequence[Question], requests: int, seed: int) -> Soak:
    """So many requests by 64 clients."""
    soak = Soak(server.port, asked, seed)
    kinds = soak.rng.choices(list(KINDS), list(KINDS.values()), k=requests)

    async def all_clients() -> None:
        await asyncio.gather(*[soak.client(kinds[i::CLIENTS]) for i in range(CLIENTS)])

    asyncio.run(all_clients())
    return soak


async def idle(server: Server) -> dict[str, float]:
    """The metrics when nothing runs or waits any more."""
    end = time.monotonic() + 30
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        head = f"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nAuthorization: Bearer {KEY}"
        writer.write(head.encode() + b"\r\n\r\n")
        lines = (await reader.read()).decode().partition("\r\n\r\n")[2].splitlines()
        writer.close()
        found = {name: float(v) for name, _, v in (line.rpartition(" ") for line in lines if line and line[0] != "#")}
        if found["unite_texts_running"] == found["unite_texts_waiting"] == 0 or time.monotonic() > end:
            return found
        await asyncio.sleep(0.1)


async def end(server: Server, asked: Sequence[Question], signals: int, seed: int) -> list[str]:
    """End a server while streams run; what went wrong."""
    rng, wrong = random.Random(seed), []
    asked = rng.choices(list(asked), k=24)
    begun = [
        asyncio.ensure_future(post(server.port, PATH, {**question.body, "stream": True}, key=KEY)) for question in asked
    ]
    await asyncio.sleep(0.3)
    for _ in range(signals):
        server.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
    for question, answer in zip(asked, await asyncio.gather(*begun)):
        if answer.done and answer.texts != question.texts:
            wrong.append(f"at the end: {answer.texts} instead of {question.texts}")
        if not answer.done and (signals == 1 or answer.error is None):
            wrong.append(f"at the end: lost, {answer.status} {answer.error}")
    if server.process.wait(60) not in (0, -signal.SIGTERM):
        wrong.append(f"the server's exit status was {server.process.returncode}")
    return wrong


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--questions", type=int, default=140, help="different good requests")
    parser.add_argument("--growth", type=float, default=40.0, help="MB that the memory may grow by")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    log = Path(tempfile.mkstemp(prefix="soak-serve-", suffix=".log")[1])
    asked = questions(UniteEnsemble([load_member(name) for name in COMPARABLE]), arguments.questions)
    options = ["--demo", "--max-requests", "48", "--max-waiting", "64", "--log-level", "warning"]
    wrong: list[str] = []
    start, third = time.perf_counter(), max(1, arguments.requests // 3)
    with serving(options, log, key=KEY) as server:
        for part, count in enumerate((third, arguments.requests - third)):
            soak = run(server, asked, count, arguments.seed + part)
            wrong += soak.wrong
            found = asyncio.run(idle(server))
            time.sleep(2 * REST)  # then it has given back what it does not need
            memory = server.memory
            print(
                f"{count} requests, {time.perf_counter() - start:.0f} s, {memory:.0f} MB: {dict(soak.counts)}; "
                f"{found['unite_completion_tokens_total']:.0f} tokens, "
                f"{found['unite_texts_cancelled_total']:.0f} texts ended early",
                flush=True,
            )
            if found["unite_texts_running"] or found["unite_texts_waiting"]:
                wrong.append("texts run or wait although nobody asks")
            if part == 0:
                before = memory
        if arguments.requests >= SETTLED and memory > before + arguments.growth:
            wrong.append(f"the memory grew from {before:.0f} to {memory:.0f} MB")
        wrong += asyncio.run(end(server, asked, 1, arguments.seed))
    with serving(options, log, key=KEY) as server:
        wrong += asyncio.run(end(server, asked, 2, arguments.seed))
    if "Traceback" in log.read_text():
        wrong.append(f"the server's log has a traceback: {log}")
    print("\n".join(wrong[:20]) or f"all good after {time.perf_counter() - start:.0f} s")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
