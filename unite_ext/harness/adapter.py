"""Ensembles as a model of lm-evaluation-harness, under the name "unite".

The harness has no plug-in mechanism of its own, so this module must be imported first: `unite eval` does, and
``python -m unite_ext.harness.adapter`` takes exactly the arguments of ``lm_eval``:

    python -m unite_ext.harness.adapter --model unite --model_args "models=A;B,k=10,method=unite" --tasks gsm8k
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lm_eval.models  # noqa: F401  # the harness registers its own models only where none is registered yet
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from .._checks import check_choice, check_integer
from ..decoding.ensemble import UniteEnsemble
from ..decoding.likelihood import LIKELIHOODS, default_likelihood, score_continuations
from ..decoding.load import Loadable
from ..decoding.prompt_ids import EncodedPrompt, encode_prompt, ids_as_prompt
from ..members.base import Prompt
from ..methods.registry import is_answer_method, parse_options
from ..options import parse_speculate

logger = logging.getLogger(__name__)

# What marks a context that is chat messages: the harness passes strings, but every member has its own template.
_CHAT = "\x00unite messages\x00"
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first that is given counts
_SAMPLING = ("temperature", "top_p", "top_k")


@register_model("unite")
class UniteLM(LM):
    """An ensemble under lm-evaluation-harness.

    Parameters
    ----------
    models : str or sequence of str or BaseMember
        Hugging Face names or local folders, the primary's place by `primary`; as a string separated by ";".
    batch_size : int or str
        Prompts that run side by side.
    max_gen_toks : int
        Most new tokens where a task does not say.
    weights : str or sequence of float, optional
        As a string separated by ";".
    method_options : str or mapping, optional
        As a string "name:value;name:value".
    ensemble : UniteEnsemble, optional
        A loaded ensemble in place of `models`, from Python.
    progress : bool
        Show progress bars.
    speculate : bool, int or str, optional
        As in `GenerationOptions`; where a task samples, nothing is drafted.
    likelihood : {"full", "union"}, optional
        As in `score_continuations`. By default "full" where the method takes a mean of the members' probabilities, so
        that numbers can be compared with those of single models; else the method's own.
    **options
        Of `UniteEnsemble.from_pretrained`: `k`, `primary`, `method`, `score`, `duplicates`, `combine`, `dtype`, ...
    device : str or sequence of str, optional
        For all members, or one per member, as a string separated by ";". The harness asks for "cuda:0" unless it is
        told otherwise: without CUDA that means the CPU, with a warning.
    """

    def __init__(
        self,
        models: str | Sequence[Loadable] | None = None,
        *,
        batch_size: int | str = 8,
        max_batch_size: int | None = None,
        max_gen_toks: int = 256,
        weights: str | Sequence[float] | float | None = None,
        method_options: str | Mapping[str, Any] | None = None,
        ensemble: UniteEnsemble | None = None,
        progress: bool = True,
        speculate: bool | int | str | None = None,
        likelihood: str | None = None,
        device: str | Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.batch_size = _batch_size(batch_size)
        check_integer("max_gen_toks", max_gen_toks, 1, 2**31)
        self.max_gen_toks = max_gen_toks
        self.progress = progress
        if likelihood is not None:
            check_choice("likelihood", likelihood, LIKELIHOODS)
        self.speculate = parse_speculate(speculate) if isinstance(speculate, str) else speculate
        if (models is None) == (ensemble is None):
            raise ValueError("models must name the members, separated by ';' (or ensemble must be given, not both)")
        if ensemble is None:
            names: list[Loadable] = (
                [name.strip() for name in models.split(";")] if isinstance(models, str) else list(models or ())
            )
            if not all(names):
                raise ValueError(f"models must be names separated by ';', got {models!r}")
            ensemble = UniteEnsemble.from_pretrained(
                names,
                weights=_parse_weights(weights),
                method_options=parse_options(method_options) if isinstance(method_options, str) else method_options,
                **{"dtype": "auto", **options, **_device(device)},
            )
        self.ensemble = ensemble
        self.primary: int = ensemble.step_options.primary
        self.method = ensemble.method
        self.likelihood = likelihood or default_likelihood(ensemble)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Text for every request's (context, generation options), in their order."""
        results: list[str] = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(i)
        checked = [(self._generation_options(requests[group[0]].args[1]), group) for group in groups.values()]
        for options, group in checked:
            group.sort(key=lambda i: -len(requests[i].args[0]))  # the longest first: too little memory shows early
            prompts = [_prompt(requests[i].args[0]) for i in group]
            found = self.ensemble.generate_each(
                prompts, indices=group, batch_size=self.batch_size, progress=self.progress, **options
            )
            for request in found:
                i = request.index
                results[i] = request.decoded()
                self.cache_hook.add_partial("generate_until", requests[i].args, results[i])
        return results

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy) of every request's (context, continuation), in their order."""
        self._check_likelihoods()
        pairs = []
        for request in requests:
            context, continuation = request.args
            prompt = _prompt(context)
            if isinstance(prompt, str):
                # White space at the end of a context begins the continuation, as in the harness's own models: " A" is
                # one token, " " and "A" are two.
                kept = prompt.rstrip()
                prompt, continuation = kept, prompt[len(kept) :] + continuation
            if not continuation:
                raise ValueError(f"a continuation must not be empty, got one after {context[-40:]!r}")
            encoded = self._encoded(prompt) if prompt else self._empty_prompt()
            pairs.append((encoded, self._targets(encoded, continuation.encode())))
        results: list[Any] = [None] * len(pairs)
        for found in self._score(pairs):
            i = found.index
            results[i] = (found.log_prob, found.is_greedy)
            self.cache_hook.add_partial("loglikelihood", requests[i].args, results[i])
        return results

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-probability of every request's whole text, in windows of the shortest context among the members."""
        self._check_likelihoods()
        vocabularies = self.ensemble.alignment.vocabularies
        pairs, owners = [], []
        for i, request in enumerate(requests):
            (text,) = request.args
            ids = self._targets(self._empty_prompt(), text.encode())
            windows = map(make_disjoint_window, get_rolling_token_windows(ids, -1, self._window(), 1)) if ids else []
            for context, targets in windows:
                # -1 stands for each member's own beginning of a text
                data = b"".join(self.ensemble.alignment.token_bytes(self.primary, t) for t in context if t >= 0)
                prompt = self._empty_prompt()
                if data:
                    own = [ids + v.encode_continuation(data) for ids, v in zip(prompt.ids, vocabularies)]
                    prompt = ids_as_prompt(vocabularies, own)
                pairs.append((prompt, targets))
                owners.append(i)
        results, left = [0.0] * len(requests), Counter(owners)
        for found in self._score(pairs):
            i = owners[found.index]
            results[i] += found.log_prob
            left[i] -= 1
            if not left[i]:
                self.cache_hook.add_partial("loglikelihood_rolling", requests[i].args, results[i])
        return results

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The messages themselves, marked: every member applies its own template to them.

        Without a generation prompt the last message is an assistant's (a task's gen_prefix), which members continue.
        """
        if not add_generation_prompt and (not chat_history or chat_history[-1]["role"] != "assistant"):
            raise ValueError(f"chat_history must end with an assistant's message to continue, got {chat_history}")
        return _CHAT + json.dumps(chat_history, ensure_ascii=False)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """All members' templates, which the harness records; a template of one's own is refused."""
        if isinstance(chat_template, str) and chat_template:
            raise ValueError(f"chat_template must be left to the members' own templates, got {chat_template!r}")
        missing = [m.name for m in self.ensemble.members if not m.chat_template]
        if chat_template and missing:
            raise ValueError(f"chat templates are asked for, but {', '.join(missing)} has none")
        return "\n\n".join(m.chat_template or "" for m in self.ensemble.members)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results beside the arguments: `unite select` tells ensembles by it."""
        method = self.method if isinstance(self.method, str) else self.method.name
        names = [member.name for member in self.ensemble.members]
        return {"members": names, "method": method, "likelihood": self.likelihood}

    @property
    def tokenizer_name(self) -> str:
        """What tells this ensemble's prompts from others' in the harness's cache."""
        return "unite__" + "__".join(member.name.replace("/", "--") for member in self.ensemble.members)

    def _score(self, pairs: list[Any]) -> Any:
        return score_continuations(
            self.ensemble, pairs, batch_size=self.batch_size, progress=self.progress, likelihood=self.likelihood
        )

    def _check_likelihoods(self) -> None:
        if is_answer_method(self.method):
            name = self.method if isinstance(self.method, str) else self.method.name
            raise ValueError(f"method {name!r} chooses among whole answers: it can run only tasks that generate")

    def _encoded(self, prompt: Prompt) -> EncodedPrompt:
        return encode_prompt(self.ensemble.members, self.ensemble.alignment.vocabularies, prompt)

    def _targets(self, prompt: EncodedPrompt, data: bytes) -> list[int]:
        """The primary's ids of what follows a prompt, its space before it in the start state."""
        vocabulary = self.ensemble.alignment.vocabularies[self.primary]
        return (vocabulary.start if prompt.starts[self.primary] else vocabulary).encode_continuation(data)

    def _empty_prompt(self) -> EncodedPrompt:
        """No text at all in every member: its BOS, else its EOS."""
        prompt = []
        for member in self.ensemble.members:
            start = member.start_ids()
            if not start:
                raise ValueError(f"{member.name} has neither BOS nor EOS to start a text from")
            prompt.append(start)
        return ids_as_prompt(self.ensemble.alignment.vocabularies, prompt)

    def _window(self) -> int:
        """How many of the primary's ids a window holds; half where other tokenizers may need more ids."""
        lengths = [m.context_length for m in self.ensemble.members if m.context_length is not None]
        same = len(set(self.ensemble.alignment.fingerprints)) == 1
        return max(1, (min(lengths, default=2048) - 2) // (1 if same else 2))

    def _generation_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The harness's generation options as those of `UniteEnsemble.generate`."""
        given = dict(given)
        until = given.pop("until", None) or []
        options: dict[str, Any] = {"stop": [s for s in ([until] if isinstance(until, str) else until) if s]}
        lengths = [length for length in (given.pop(name, None) for name in _LENGTHS) if length is not None]
        options["max_new_tokens"] = int(lengths[0]) if lengths else self.max_gen_toks
        if self.speculate and not is_answer_method(self.method):
            options["speculate"] = self.speculate
        do_sample = given.pop("do_sample", None)
        # A temperature alone asks for sampling, as in the harness's own models, but for 0.
        options["do_sample"] = float(given.get("temperature") or 0) > 0 if do_sample is None else bool(do_sample)
        for name in _SAMPLING:
            value = given.pop(name, None)
            if options["do_sample"] and value is not None:
                options[name] = float(value) if name == "temperature" else value
        for name in ("seed", "repetition_penalty", "min_new_tokens", "gate"):
            if name in given:
                options[name] = given.pop(name)
        if options["do_sample"] or options.get("gate") is not None:
            options.pop("speculate", None)
        if given:
            raise ValueError(f"generation option {sorted(given)[0]!r} is not known to unite")
        return options


@contextmanager
def quiet_git() -> Iterator[None]:
    """Let the harness look for the commit of the current folder without git's complaint where there is none."""
    from lm_eval import evaluator
    from lm_eval.loggers.utils import get_commit_from_path

    def commit() -> str | None:
        try:
            found = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True, check=True)
        except (subprocess.CalledProcessError, OSError):
            return get_commit_from_path(os.getcwd())
        return found.stdout.strip()

    before = evaluator.get_git_commit_hash
    evaluator.get_git_commit_hash = commit
    try:
        yield
    finally:
        evaluator.get_git_commit_hash = before


def _prompt(context: str) -> Prompt:
    """What a context stands for: text, or chat messages."""
    return json.loads(context[len(_CHAT) :]) if context.startswith(_CHAT) else context


def _device(value: str | Sequence[str] | None) -> dict[str, Any]:
    if value is None:
        return {}
    names = value.split(";") if isinstance(value, str) else list(value)
    if not torch.cuda.is_available() and any(name.startswith("cuda") for name in names):
        logger.warning("there is no CUDA device here: the members run on the CPU instead of %s", value)
        return {}
    return {"device": names[0] if len(names) == 1 else names}


def _batch_size(value: int | str) -> int:
    try:
        number = int(value)
    except ValueError:
        raise ValueError(f"batch_size must be a number, got {value!r}: memory is not probed") from None
    check_integer("batch_size", number, 1, 2**31)
    return number


def _parse_weights(value: Any) -> list[float] | None:
    if value is None:
        return None
    parts = value.split(";") if isinstance(value, str) else [value] if isinstance(value, (int, float)) else value
    try:
        return [float(part) for part in parts]
    except (TypeError, ValueError):
        raise ValueError(f"weights must be numbers separated by ';', got {value!r}") from None


def main() -> None:
    """lm-evaluation-harness's command line, which knows this model."""
    from lm_eval.__main__ import cli_evaluate

    with quiet_git():
        cli_evaluate()


if __name__ == "__main__":
    main()
