"""Train the demo's models: `python tools/demo_models/train_models.py --out FOLDER [MODEL ...]`.

One model takes minutes on one core of a 2-core x86-64 machine without a GPU; docs/demo.md has the times. All seeds are
fixed. Models are trained to generate the worked solution of a problem after its question. Half of the solutions are cut
at random places and tokenized piece by piece, because in an ensemble a model has to continue wherever another model's
token ends.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import demo_tokenizers
import torch
from recipes import BATCH, CONTEXT, HEADS, HIDDEN, LAYERS, RECIPES, Recipe
from torch import Tensor

from unite_ext.demo.problems import Problem, draw_problems

logger = logging.getLogger(__name__)

POOL = 32  # batches drawn at a time and sorted by length, so that there is little padding
CUT_SHARE, MAX_CUTS = 0.5, 4
MUON_RATE, ADAM_RATE, WARMUP, WEIGHT_DECAY = 6e-3, 3e-3, 60, 0.05
TOKENIZER_PROBLEMS = 4000
CHECKPOINTS = (0.15, 0.2, 0.25, 0.3, 0.4, 0.55, 0.75)


def build_tokenizer(recipe: Recipe) -> Any:
    """Train the recipe's tokenizer on problems of its own mixture."""
    problems = itertools.islice(draw_problems("train", recipe.seed, recipe.mixture), TOKENIZER_PROBLEMS)
    texts = [p.prompt + p.solution for p in problems]
    return getattr(demo_tokenizers, recipe.tokenizer)(texts, recipe.vocab_size)


def build_model(recipe: Recipe, tokenizer: Any) -> Any:
    """Make a model with random weights for this tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        recipe.architecture,
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
        **{"tie_word_embeddings": True, **recipe.config},
    )
    torch.manual_seed(recipe.seed)
    return AutoModelForCausalLM.from_config(config)


class Encoder:
    """Tokenizes problems. Only the solution and its EOS are learned."""

    def __init__(self, tokenizer: Any, rng: random.Random) -> None:
        self.tokenizer, self.rng = tokenizer, rng
        self.continuation = demo_tokenizers.continuation(tokenizer)

    def __call__(self, problem: Problem) -> tuple[list[int], int]:
        """The ids of prompt and solution, and how many of them are the prompt's."""
        prompt = self.tokenizer(problem.prompt).input_ids
        text = problem.solution
        cuts: list[int] = []
        if self.rng.random() < CUT_SHARE:
            cuts = sorted(self.rng.sample(range(1, len(text)), self.rng.randint(1, MAX_CUTS)))
        bounds = itertools.pairwise([0, *cuts, len(text)])
        solution = [i for a, b in bounds for i in self.continuation.encode(text[a:b]).ids]
        return [*prompt, *solution, self.tokenizer.eos_token_id], len(prompt)


def batches(recipe: Recipe, tokenizer: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw batches without end: ids [B, T] and labels [B, T], which are -100 where nothing is learned."""
    rng = random.Random(recipe.seed)
    encode = Encoder(tokenizer, rng)
    problems = draw_problems("train", recipe.seed, recipe.mixture)
    while True:
        pool = sorted((encode(next(problems)) for _ in range(BATCH * POOL)), key=lambda row: len(row[0]))
        groups = [pool[i : i + BATCH] for i in range(0, len(pool), BATCH)]
        rng.shuffle(groups)
        yield from map(_pad, groups)


def _pad(rows: Sequence[tuple[list[int], int]]) -> tuple[Tensor, Tensor]:
    width = max(len(ids) for ids, _ in rows)
    ids, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -100)
    for r, (row, prompt) in enumerate(rows):
        ids[r, : len(row)] = torch.tensor(row)
        labels[r, prompt : len(row)] = ids[r, prompt : len(row)]
    return ids, labels


def train(recipe: Recipe, out: Path, *, steps: int | None = None, checkpoints: Path | None = None) -> Path:
    """Train one model and save it with its tokenizer under `out`. Returns its folder.

    `checkpoints` is a folder for weights during training, which `measure_models.py gap` reads.
    """
    started = time.perf_counter()
    count = steps or recipe.steps
    tokenizer = build_tokenizer(recipe)
    model = build_model(recipe, tokenizer).train()
    optimizers = _optimizers(model)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: _rate(step, count)) for o in optimizers]
    snapshots = {round(share * count): share for share in CHECKPOINTS} if checkpoints else {}
    tokens, mean = 0, 0.0
    for step, (ids, labels) in enumerate(itertools.islice(batches(recipe, tokenizer), count), start=1):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        tokens += ids.numel()
        mean += max(0.02, 1 / step) * (loss.item() - mean)
        if step % 100 == 0:
            seconds = time.perf_counter() - started
            logger.info(
                "%s step %d loss %.4f, %.0f tokens/s, %.0f s", recipe.name, step, mean, tokens / seconds, seconds
            )
        if checkpoints and step in snapshots:
            save(recipe, model, tokenizer, checkpoints / f"{recipe.name}-{snapshots[step]:.2f}")
    folder = save(recipe, model, tokenizer, out / recipe.name)
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "steps": count,
        "problems": count * BATCH,
        "tokens": tokens,
        "minutes": round((time.perf_counter() - started) / 60, 1),
    }
    (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
    return folder


def _optimizers(model: Any) -> list[torch.optim.Optimizer]:
    """Make the optimizers: Muon for the layers' matrices, which halves the steps here, and AdamW for the rest."""
    named = list(model.named_parameters())
    inner = [p for name, p in named if p.dim() == 2 and "embed" not in name and "head" not in name]
    tables = [p for name, p in named if p.dim() == 2 and ("embed" in name or "head" in name)]
    vectors = [p for _, p in named if p.dim() == 1]
    groups = [{"params": tables, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(inner, lr=MUON_RATE, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=ADAM_RATE, betas=(0.9, 0.98), fused=True),
    ]


def _rate(step: int, steps: int) -> float:
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))


def save(recipe: Recipe, model: Any, tokenizer: Any, folder: Path) -> Path:
    """Save a model so that transformers 4 reads it too. Weights have 16 bits, but load as float32."""
    folder.mkdir(parents=True, exist_ok=True)
    half = build_model(recipe, tokenizer).half()
    half.load_state_dict(model.state_dict())
    half.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # both versions know this; transformers 5 writes a new name
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "model.safetensors").chmod(0o644)
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python tools/demo_models/train_models.py", description=(__doc__ or "").partition("\n\n")[2]
    )
    parser.add_argument("models", nargs="*", help=f"of {', '.join(RECIPES)}; all by default")
    parser.add_argument("--out", type=Path, required=True, help="folder for the models")
    parser.add_argument("--checkpoints", type=Path, help="folder for weights during training")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--threads", type=int, default=1, help="of torch; results depend on it in the last digits")
    options = parser.parse_args(arguments)
    unknown = set(options.models) - RECIPES.keys()
    if unknown:
        parser.error(f"models must be among {', '.join(RECIPES)}, got {', '.join(sorted(unknown))}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(options.threads)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    for name in options.models or RECIPES:
        folder = train(RECIPES[name], options.out, steps=options.steps, checkpoints=options.checkpoints)
        logger.info("saved %s", folder)


if __name__ == "__main__":
    main()
