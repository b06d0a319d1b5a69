"""The contract between an ensemble and its members: what a model must offer, wherever it runs.

A `BaseMember` is one model with its tokenizer. Its `Context` is what it has read of every running request. Asked for
the next token of some requests, a context gives `Scores`. A step needs little of them: every member's k best ids, then
its logits for the ids of the union. A member whose logits are at hand offers them whole, for the fused step.

docs/extending.md shows how to add a kind of member.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..exchange import HERE, Exchange

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..options import StepOptions
    from ..vocab.alignment import VocabAlignment

Message = Mapping[str, Any]
Variables = Mapping[str, Any]
"""Of a chat template."""
Prompt = str | Sequence[Message]
"""Text, or chat messages."""
Place = tuple[int, int, Sequence[int]]
"""The text that a request would have: its key, how many of its last ids are dropped, and the ids appended then."""


class MemberAway(RuntimeError):
    """A member has not answered for some requests: its server is down, slow, or refuses.

    Attributes
    ----------
    member : BaseMember
    reasons : dict of int to str
        Per key of a request that has no answer, why.
    """

    def __init__(self, member: BaseMember, reasons: Mapping[int, str], where: str = "") -> None:
        super().__init__(f"{where}{member.name} stays away: {next(iter(reasons.values()), 'no answer')}")
        self.member = member
        self.reasons = dict(reasons)


class Scores(ABC):
    """One member's logits for the next token of N requests, whole or by parts."""

    @property
    def exchange(self) -> Exchange:
        """How they come together with the other members'."""
        return HERE

    @property
    @abstractmethod
    def logits(self) -> Tensor | None:
        """[N, V] float32, bfloat16 or float16 where all of them are at hand, else None."""

    @abstractmethod
    def top_k(self, alignment: VocabAlignment, member: int, options: StepOptions) -> tuple[Tensor, Tensor]:
        """The k best eligible ids.

        Parameters
        ----------
        alignment : VocabAlignment
            Says which ids are eligible.
        member : int
            This member's place in the alignment.
        options : StepOptions
            Of which `k` and `score` count.

        Returns
        -------
        keys : Tensor, int64 [N, k]
            See `unite_ext.step_parts.top_k_keys`; `unite_ext.exchange.make_keys` makes them of ids and logits.
        log_sums : Tensor, float32 [N]
            Zeros unless `score` is "probs".

        Raises
        ------
        MemberAway
            The member runs elsewhere and does not answer. So for `gather`, and for a context's `evaluate`.
        """

    @abstractmethod
    def gather(self, ids: Tensor) -> Tensor:
        """The logits of ids, float32 [N, U].

        Parameters
        ----------
        ids : Tensor, int32 [N, U]
            With or without `FIRST_SUB_TOKEN`. Those below 0 have -inf; those of the keys need no logit.
        """

    @abstractmethod
    def select(self, rows: Sequence[int]) -> Scores:
        """Only these rows, in this order."""


class Context(ABC):
    """What one member has read of every running request; requests are named by an integer key.

    A request's ids are its prompt's, then those of the text so far. `join` and `edit` only note what is to be read;
    `prefill` and `evaluate` run the model.
    """

    @abstractmethod
    def join(self, key: int, ids: Sequence[int]) -> None:
        """Take up a request with so many ids, at least one."""

    @abstractmethod
    def leave(self, key: int) -> None:
        """Let go of a request, wherever it stands, and of its memory."""

    @abstractmethod
    def edit(self, key: int, drop: int, append: Sequence[int]) -> None:
        """Drop a request's last `drop` ids and append others."""

    @abstractmethod
    def lengths(self, keys: Sequence[int]) -> list[int]:
        """How many ids each request has."""

    @abstractmethod
    def ids(self, key: int) -> list[int]:
        """A request's ids; not to be changed."""

    def prefill(self, budget: int) -> None:  # noqa: B027  # most kinds read a prompt when they are asked
        """Read up to `budget` ids of requests that have joined, apart from those that are running."""

    def ready(self, key: int) -> bool:
        """Whether so much of a request has been read that it can run beside the others."""
        return True

    @abstractmethod
    def evaluate(self, keys: Sequence[int]) -> Scores:
        """Scores for the next token of these requests, one row each, in this order.

        Raises
        ------
        torch.OutOfMemoryError
            The engine then lets requests leave and join again: nothing of a context's state needs to be kept.
        """

    def hold(self, places: Sequence[Place]) -> None:  # noqa: B027  # most kinds have nothing to hold
        """Say which texts will be gone on from: what has been read of them is kept beside the requests' own ids.

        It holds for the next call of `evaluate_places`, at which everything else that no request needs may go.
        """

    def evaluate_places(self, places: Sequence[Place]) -> Scores:
        """Scores for the next token after each of several texts, one row each, in this order.

        No request's ids change. By default one place of every request at a time; a kind that can takes all in one pass.

        Parameters
        ----------
        places : sequence of (key, drop, append)
            The text that a request would have after `edit(key, drop, append)`. The requests run already.

        Raises
        ------
        torch.OutOfMemoryError
            As `evaluate`.
        """
        turns: list[list[int]] = []  # the places of one turn belong to different requests
        counts: dict[int, int] = {}
        for n, (key, _, _) in enumerate(places):
            counts[key] = counts.get(key, 0) + 1
            if counts[key] > len(turns):
                turns.append([])
            turns[counts[key] - 1].append(n)
        found: dict[int, tuple[Scores, int]] = {}
        for turn in turns:
            dropped: dict[int, list[int]] = {}
            for key, drop, append in (places[n] for n in turn):
                ids = self.ids(key)
                dropped[key] = ids[len(ids) - drop :]
                self.edit(key, drop, append)
            scores = self.evaluate([places[n][0] for n in turn])
            found |= {n: (scores, row) for row, n in enumerate(turn)}
            for key, _, append in (places[n] for n in turn):
                self.edit(key, len(append), dropped[key])
        return JoinedScores([found[n] for n in range(len(places))])


class JoinedScores(Scores):
    """Rows of several scores as one.

    Parameters
    ----------
    rows : sequence of (Scores, int)
        Where each row comes from: which scores, and which of their rows.
    """

    def __init__(self, rows: Sequence[tuple[Scores, int]]) -> None:
        self._rows = list(rows)

    def _collect(self, call: Callable[[Scores, list[int]], Tensor]) -> Tensor:
        """One tensor row per row; `call` gets the scores of some rows, and where these stand in the whole."""
        groups: dict[int, list[int]] = {}
        for n, (part, _) in enumerate(self._rows):
            groups.setdefault(id(part), []).append(n)
        order = [n for places in groups.values() for n in places]
        found = [call(self._rows[p[0]][0].select([self._rows[n][1] for n in p]), p) for p in groups.values()]
        joined = torch.cat(found)
        back = torch.empty(len(order), dtype=torch.long, device=joined.device)
        back[torch.tensor(order, device=joined.device)] = torch.arange(len(order), device=joined.device)
        return joined[back]

    @property
    def logits(self) -> Tensor | None:
        """See `Scores.logits`."""
        logits = [None if part.logits is None else part.logits[row] for part, row in self._rows]
        whole = [x for x in logits if x is not None]
        return torch.stack(whole) if len(whole) == len(logits) else None

    def top_k(self, alignment: VocabAlignment, member: int, options: StepOptions) -> tuple[Tensor, Tensor]:
        """See `Scores.top_k`."""
        keys = self._collect(lambda part, _: part.top_k(alignment, member, options)[0])
        return keys, self._collect(lambda part, _: part.top_k(alignment, member, options)[1])

    def gather(self, ids: Tensor) -> Tensor:
        """See `Scores.gather`."""
        return self._collect(lambda part, places: part.gather(ids[torch.tensor(places, device=ids.device)]))

    def select(self, rows: Sequence[int]) -> JoinedScores:
        """See `Scores.select`."""
        return JoinedScores([self._rows[row] for row in rows])


class BaseMember(ABC):
    """One model of an ensemble.

    Attributes
    ----------
    name : str
        What messages call it.
    tokenizer : transformers.PreTrainedTokenizerFast or None
        What the ensemble's alignment is made from; None where one is given.
    eos_token_ids : list of int
        The ids that end a text beside the tokenizer's own.
    context_length : int or None
        The longest text the model was made for.
    num_logits : int
        V, the width of the model's head.
    device : torch.device
        Where its scores are.
    gives_logits : bool
        Whether its scores have whole logits. Without them some methods and options are refused.
    gives_likelihoods : bool
        Whether `negative_log_likelihood` can be used.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    eos_token_ids: list[int]
    context_length: int | None
    gives_logits: bool = True
    gives_likelihoods: bool = True

    @property
    @abstractmethod
    def num_logits(self) -> int: ...

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @abstractmethod
    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt, at least one. ValueError for one that the model cannot take."""

    def encode_with(self, prompt: Prompt, variables: Variables) -> list[int]:
        """Ids of a prompt as `encode_prompt`, with further variables for the chat template."""
        raise ValueError(f"chat_template_kwargs must be None for {self.name}, which has no chat template here")

    def answer_ids(
        self, prompt: Sequence[Message], ids: Sequence[int], answer: str, variables: Variables | None = None
    ) -> list[int] | None:
        """What follows a chat's ids where the member's template writes it with the beginning of an answer.

        None where there is no template, or it does not begin as the prompt does.
        """
        return None

    def check_ids(self, ids: Sequence[int]) -> None:  # noqa: B027  # most kinds find out by themselves
        """Raise ValueError for ids that the model cannot read."""

    def check_step(self, options: StepOptions) -> None:  # noqa: B027  # most kinds can do any step
        """Raise ValueError for a step that this member cannot take part in."""

    @abstractmethod
    def new_context(self, *, max_requests: int, compiled: bool = False, expected_length: int = 0) -> Context:
        """An empty context for up to `max_requests` running requests.

        `compiled` asks for fixed shapes and a compiled pass; `expected_length` is how long the requests may become.
        """

    @property
    def bytes_per_token(self) -> int:
        """Memory that every id of a running request takes at its `place`, 0 where that is not known."""
        return 0

    @property
    def place(self) -> str:
        """What to call the place of its memory: its device, and whose that is where it is not this process's."""
        return str(self.device)

    @property
    def chat_template(self) -> str | None:
        """The template that messages are rendered by, None without any."""
        return None

    def start_ids(self) -> list[int]:
        """The ids of no text at all, from which a text can begin: BOS, else EOS. Empty where there is neither."""
        return []

    def token_name(self, token_id: int) -> str:
        """What to call an id that stands for no text."""
        return f"<{token_id}>"

    def input_embeddings(self) -> Tensor:
        """[V, D]: the input embeddings, which some methods compare."""
        raise ValueError(f"{self.name} does not give its embeddings")

    def negative_log_likelihood(self, ids: Sequence[int]) -> float:
        """-log p(ids[1:] | ids[0]), in nats."""
        raise ValueError(f"{self.name} does not give the likelihood of a text")
