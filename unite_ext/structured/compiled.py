"""Structures and their compiled form: one grammar per vocabulary, compiled once and kept."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ..vocab.vocabulary import Vocabulary
from .patterns import MAX_LENGTH, portable_pattern
from .schema import portable_schema

if TYPE_CHECKING:
    import xgrammar

JSON_SCHEMA, REGEX, GRAMMAR = KINDS = ("json_schema", "regex", "grammar")

ONE_LINE = {"any_whitespace": False}
"""JSON as `json.dumps` writes it: members do not vote on white space, and none idles in it for ever."""
_CACHE_BYTES = 1 << 28  # of compiled grammars, per vocabulary
_SURROGATE = re.compile(rb"\xed[\xa0-\xbf]")


@dataclass(frozen=True)
class Structure:
    """What a text has to be.

    Parameters
    ----------
    kind : {"json_schema", "regex", "grammar"}
    given : mapping, str or a pydantic model
        A JSON schema; a regular expression that the whole text matches; or a grammar in GBNF, whose rule `root` the
        text follows.

    Raises
    ------
    TypeError, ValueError
        It does not compile: says why. Or xgrammar is not installed.
    """

    kind: str
    given: object
    source: str = field(init=False)
    """As xgrammar gets it."""

    def __post_init__(self) -> None:
        if self.kind == JSON_SCHEMA:
            source = portable_schema(self.given)
        elif not isinstance(self.given, str):
            raise TypeError(f"{self.kind} must be a string, got {type(self.given).__name__}")
        elif len(self.given) > MAX_LENGTH:
            raise ValueError(f"{self.kind} must have at most {MAX_LENGTH} characters, got {len(self.given)}")
        else:
            source = portable_pattern(self.given) if self.kind == REGEX else self.given
        object.__setattr__(self, "source", source)
        module = import_xgrammar(self.kind)
        make = {JSON_SCHEMA: self._parse_schema, REGEX: module.Grammar.from_regex, GRAMMAR: module.Grammar.from_ebnf}
        self._checked(lambda: make[self.kind](source))

    def compile(self, vocabularies: Sequence[Vocabulary]) -> list[xgrammar.CompiledGrammar]:
        """The grammar of every vocabulary, compiled at the first call.

        Raises
        ------
        ValueError
            It does not compile.
        """
        return [self._checked(partial(self._compile, vocabulary)) for vocabulary in vocabularies]

    def _compile(self, vocabulary: Vocabulary) -> xgrammar.CompiledGrammar:
        return compiler_of(vocabulary, self.kind).compile(self.kind, self.source)

    def _parse_schema(self, source: str) -> Any:
        return import_xgrammar(self.kind).Grammar.from_json_schema(source, **ONE_LINE)

    def _checked(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (RuntimeError, ValueError) as error:
            # "[12:00:00] /project/cpp/file.cc:83: what is wrong"
            reason = re.sub(r"^\[[\d:]+\] \S+?:\d+: ", "", str(error)).strip()
            raise ValueError(f"{self.kind} must be one that compiles, got: {reason}") from None


class VocabularyCompiler:
    """Compiles grammars for one vocabulary, and knows what its tokens are in a text.

    Parameters
    ----------
    vocabulary : Vocabulary
    kind : str
        Which option asks, for the message where xgrammar is missing.
    """

    def __init__(self, vocabulary: Vocabulary, kind: str) -> None:
        module = import_xgrammar(kind)
        # Tokens without bytes, and those that would make the text no UTF-8, are never allowed.
        self._pieces = [b"" if _SURROGATE.search(data) else data for data in vocabulary.token_bytes]
        self.info = module.TokenizerInfo(
            self._pieces,
            module.VocabType.RAW,
            vocab_size=vocabulary.size,
            stop_token_ids=list(vocabulary.eos_token_ids),
        )
        self._compiler = module.GrammarCompiler(
            self.info, max_threads=os.cpu_count() or 1, cache_limit_bytes=_CACHE_BYTES
        )

    def compile(self, kind: str, source: str) -> xgrammar.CompiledGrammar:
        """The compiled grammar; the same one for the same source."""
        if kind == JSON_SCHEMA:
            return self._compiler.compile_json_schema(source, **ONE_LINE)
        return self._compiler.compile_regex(source) if kind == REGEX else self._compiler.compile_grammar(source)

    @cached_property
    def second_halves(self) -> list[int]:
        """Ids whose bytes begin with A0 to BF: after ED they would make half a surrogate pair, which is no UTF-8."""
        return [i for i, data in enumerate(self._pieces) if data and 0xA0 <= data[0] <= 0xBF]


_compilers: WeakKeyDictionary[Vocabulary, VocabularyCompiler] = WeakKeyDictionary()
_lock = threading.Lock()


def compiler_of(vocabulary: Vocabulary, kind: str) -> VocabularyCompiler:
    """The compiler of a vocabulary, made once."""
    with _lock:
        found = _compilers.get(vocabulary)
        if found is None:
            found = _compilers[vocabulary] = VocabularyCompiler(vocabulary, kind)
        return found


def import_xgrammar(option: str) -> Any:
    """The package; ValueError that says how to install it where it is missing."""
    try:
        import xgrammar
    except ImportError as error:
        raise ValueError(f"{option} needs xgrammar: pip install 'unite_ext[structured]' ({error})") from None
    return xgrammar
