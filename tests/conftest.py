"""Fixtures: real tokenizers, a cache folder of the tests' own, and a browser."""

from __future__ import annotations

import functools
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched; trying would cost a minute here and there

import hypothesis
import pytest
import torch

# The same code, the same answer; `--hypothesis-profile=explore` draws anew each time, to look for what is not known.
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True)
hypothesis.settings.load_profile("fixed")

# The models here are so small that threads only wait for each other, for long where other work runs beside the tests.
torch.set_num_threads(1)

REAL_TOKENIZERS = "UNITE_TEST_TOKENIZERS"
NAMES = ("llama-3", "qwen2", "deepseek-v3", "mistral-7b-v0.1", "mistral-7b-v0.3")


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory):
    """Tests neither read nor fill the user's cache of alignments."""
    before = os.environ.get("UNITE_CACHE")
    os.environ["UNITE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("UNITE_CACHE")
    if before is not None:
        os.environ["UNITE_CACHE"] = before


@functools.cache
def load_real_tokenizer(name: str):
    """A tokenizer of the folder UNITE_TEST_TOKENIZERS names: skip where that is unset, fail where it is missing."""
    folder = os.environ.get(REAL_TOKENIZERS)
    if not folder:
        pytest.skip(f"{REAL_TOKENIZERS} does not name a folder of real tokenizers")
    path = Path(folder) / name
    if not path.is_dir():
        pytest.fail(f"{REAL_TOKENIZERS} is set, but {path} is missing")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


@pytest.fixture(scope="session")
def real_tokenizer():
    """The loader of a real tokenizer by name."""
    return load_real_tokenizer


@pytest.fixture(scope="session")
def real_alignment(private_cache):
    """Llama-3, Qwen2 and Mistral-v0.3."""
    from unite_ext import VocabAlignment

    return VocabAlignment.from_tokenizers([load_real_tokenizer(n) for n in ("llama-3", "qwen2", "mistral-7b-v0.3")])


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium with a profile of its own."""
    from chromium import start_browser

    started = start_browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.quit()
