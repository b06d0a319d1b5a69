"""LLM-Blender's PairRanker: choose the answer that wins its comparisons (Jiang et al. 2023, arXiv 2306.02561)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Model, DebertaV2PreTrainedModel

from ..members.base import Prompt
from .base import AnswerMethod

ARCHITECTURE = "DebertaV2PairRM"
MARKS = ("<|source|>", "<|candidate1|>", "<|candidate2|>")
_SOURCE_LENGTH, _CANDIDATE_LENGTH = 1224, 412  # tokens, as the published model was trained


class PairRanker(AnswerMethod):
    """Pairwise ranking by a reward model (arXiv 2306.02561, section 3).

    The model gives f(x, y_i, y_j), how much better answer i is than j for the prompt x. It depends on the order of the
    two, so both orders count: argmax_i sum_{j != i} f(x, y_i, y_j) - f(x, y_j, y_i) (the paper's "MaxLogits").

    Parameters
    ----------
    path : str
        Local folder of a model in the format of llm-blender/PairRM-hf: a DeBERTa-v2 encoder `pretrained_model`, a
        `head_layer` on the encodings of the marks of the prompt and of an answer, and a tokenizer with the marks.
    device : str
        The device of the model.
    """

    name: ClassVar[str] = "pair-ranker"

    def __init__(self, weights: Sequence[float], *, path: str | None = None, device: str = "cpu") -> None:
        super().__init__(weights)
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        self._model = DebertaV2PairRM.from_pretrained(path).eval().to(device)

    @classmethod
    def check_options(cls, own: Mapping[str, object]) -> None:
        """Check that the reward model exists and has the right format."""
        super().check_options(own)
        path = own.get("path")
        if path is None:
            raise ValueError("path must be the folder of a reward model: method_options={'path': ...}, got none")
        if not isinstance(path, str):
            raise TypeError(f"path must be a string, got {type(path).__name__}")
        config = Path(path) / "config.json"
        if not config.is_file():
            raise ValueError(f"path must be a folder with a reward model, but {config} does not exist")
        settings = json.loads(config.read_text(encoding="utf-8"))
        found = settings.get("architectures") or ["no architecture"]
        if ARCHITECTURE not in found:
            raise ValueError(f"path must hold a {ARCHITECTURE}, as llm-blender/PairRM-hf is, got {', '.join(found)}")
        for name in ("n_tasks", "drop_out", "source_prefix_id", "cand1_prefix_id", "cand2_prefix_id"):
            if name not in settings:
                raise ValueError(f"path: {config} has no {name!r}, which a {ARCHITECTURE} needs")

    def choose(self, prompt: Prompt, answers: Sequence[str]) -> int:
        """See `AnswerMethod.choose`. A chat prompt is the contents of its messages, one per line."""
        source = prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
        gains = [0.0] * len(answers)
        for i in range(len(answers)):
            for j in range(len(answers)):
                if i != j and answers[i] != answers[j]:
                    better = self.compare(source, answers[i], answers[j])
                    gains[i] += better
                    gains[j] -= better
        return gains.index(max(gains))

    @torch.no_grad()
    def compare(self, source: str, first: str, second: str) -> float:
        """Compute f(x, y_1, y_2), which is positive if the first answer is the better one."""
        ids = self._encode(MARKS[0], source, _SOURCE_LENGTH)
        left = (_SOURCE_LENGTH + 2 * _CANDIDATE_LENGTH - len(ids)) // 2
        ids = ids + self._encode(MARKS[1], first, left) + self._encode(MARKS[2], second, left)
        input_ids = torch.tensor([ids], device=self._model.device)
        return float(self._model(input_ids, torch.ones_like(input_ids)))

    def _encode(self, mark: str, text: str, length: int) -> list[int]:
        for foreign in MARKS:  # a mark in a text would be read as another answer
            text = text.replace(foreign, "")
        return self._tokenizer.encode(mark + text, max_length=length, truncation=True)


class DebertaV2PairRM(DebertaV2PreTrainedModel):
    """The layers of the published model, named as in its checkpoint."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.pretrained_model = DebertaV2Model(config)
        self.head_layer = nn.Sequential(
            nn.Dropout(config.drop_out),
            nn.Linear(2 * config.hidden_size, config.hidden_size),
            nn.Tanh(),
            nn.Dropout(config.drop_out),
            nn.Linear(config.hidden_size, config.n_tasks),
        )
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """How much better the first answer of each row is, float [B]. Every row holds each mark once."""
        states = self.pretrained_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        source, first, second = (
            states[input_ids == mark]
            for mark in (self.config.source_prefix_id, self.config.cand1_prefix_id, self.config.cand2_prefix_id)
        )
        scores = [self.head_layer(torch.cat([source, answer], dim=-1)) for answer in (first, second)]
        return (scores[0] - scores[1]).mean(dim=-1)
