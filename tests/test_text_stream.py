"""A stream that is not read to its end: closed, left, or open when Python exits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import toy_tokenizers
from toy_models import toy_model

from unite_ext import UniteEnsemble

PROMPT = "James met"


@pytest.fixture(scope="module")
def ensemble():
    tokenizer = toy_tokenizers.byte_level()
    return UniteEnsemble([toy_model("llama", tokenizer, seed=2)], [tokenizer])


@pytest.fixture(scope="module")
def text(ensemble):
    [text] = ensemble.generate([PROMPT], max_new_tokens=12)
    assert len(text) > 4
    return text


def test_a_closed_stream_has_ended_and_keeps_its_text(ensemble, text):
    stream = ensemble.stream(PROMPT, max_new_tokens=12)
    piece = next(stream)
    stream.close()
    stream.close()
    assert list(stream) == []
    assert text.startswith(piece)
    assert stream.request.decoded().startswith(piece)
    assert len(stream.request.decoded()) < len(text)


def test_leaving_a_with_block_closes_the_stream(ensemble, text):
    stream = ensemble.stream(PROMPT, max_new_tokens=12)
    with pytest.raises(KeyError), stream:
        raise KeyError(next(stream))
    assert list(stream) == []
    with ensemble.stream(PROMPT, max_new_tokens=12) as stream:
        assert "".join(stream) == text


CODE = """
import os
import sys

import toy_tokenizers
from toy_models import toy_model
from unite_ext import UniteEnsemble

tokenizer = toy_tokenizers.byte_level()
ensemble = UniteEnsemble([toy_model("llama", tokenizer, seed=2)], [tokenizer])
stream = ensemble.stream("James met", max_new_tokens=12)
print(next(stream), end="")
loop = [stream]
loop.append(loop)  # found by the collector only, late
for piece in ensemble.stream("James met", max_new_tokens=12):
    break
sys.stdout.flush()
if os.fork():  # the parent ends by an exception, its copy in the usual way
    assert os.wait()[1] == 0
    raise SystemExit(0)
"""


def test_an_open_stream_at_exit_says_nothing(text, tmp_path):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-W", "ignore", "-c", CODE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Exception ignored" not in done.stderr
    assert "Traceback" not in done.stderr
    assert text.startswith(done.stdout or text)
