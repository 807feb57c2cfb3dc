"""Answers of in-process models held to a grammar, or to the JSON of a schema, by llguidance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mmkd.errors import ConfigError
from mmkd.synthesis.backends import Call
from mmkd.synthesis.schemas import closed

# Between tokens one space at most: a model that may write any number of blanks can write them for ever.
JSON_LAYOUT = {"whitespace_pattern": r" ?", "whitespace_flexible": True}


class Constraint:
    """What holds one model's answers to grammars and schemas.

    Args:
        ends: tokens that end an answer; they can be drawn where a text of the grammar may end.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: list[int]):
        self._tokenizer, self._ends = tokenizer, ends
        self._known: dict[int, Any] = {}  # by size of vocabulary: taking a tokenizer over lasts a second
        self._schemas: dict[str, str | None] = {}  # JSON schema -> grammar
        self._grammars: dict[str, str] = {}  # GBNF -> llguidance's own

    def rows(self, calls: Sequence[Call]) -> LogitsProcessor | None:
        """For one `generate`, of whose rows each follows the grammar (GBNF) of its call, else its schema; None where no
        row has one that it can be held to.

        A schema that llguidance cannot hold a model to, or any where it is not installed, holds nothing here: such
        replies are validated and asked for again, as a server's are.

        Raises: ConfigError for a call with a grammar where llguidance is not installed, or cannot read the tokenizer or
            the grammar.
        """
        held = [self._grammar(call) for call in calls]
        return GrammarRows(self, held) if any(held) else None

    def _grammar(self, call: Call) -> str | None:
        """As llguidance's own grammar."""
        fast = isinstance(self._tokenizer, PreTrainedTokenizerFast)
        if call.sampling.grammar:
            if not fast:
                kind = type(self._tokenizer).__name__
                raise ConfigError(f"answers that follow a grammar need a fast tokenizer; this model has a {kind}.")
            if call.sampling.grammar not in self._grammars:
                self._grammars[call.sampling.grammar] = self._lark(call.sampling.grammar)
            return self._grammars[call.sampling.grammar]
        if call.schema is None or not fast or find_spec("llguidance") is None:
            return None
        schema = json.dumps(closed(call.schema.model_json_schema()))
        if schema not in self._schemas:
            self._schemas[schema] = self._json(schema)
        return self._schemas[schema]

    def _json(self, schema: str) -> str | None:
        matcher = self._library.LLMatcher
        grammar = matcher.grammar_from_json_schema(schema, overrides=JSON_LAYOUT)
        wrong, _ = matcher.validate_grammar_with_warnings(grammar)
        return None if wrong else grammar

    def matcher(self, grammar: str, vocabulary: int) -> Any:
        if vocabulary not in self._known:
            made = self._library.hf.from_tokenizer(self._tokenizer, n_vocab=vocabulary, eos_token=self._ends)
            self._known[vocabulary] = made
        matcher = self._library.LLMatcher(self._known[vocabulary], grammar)
        if matcher.is_error():
            raise ConfigError(f"llguidance cannot read this grammar: {matcher.get_error()[:300]}")
        return matcher

    def _lark(self, text: str) -> str:
        try:
            read = self._library.gbnf_to_lark.any_to_lark(text)
        except Exception as error:  # what the converter raises has no class of its own
            raise ConfigError(f"llguidance cannot read this grammar: {error}") from error
        return self._library.LLMatcher.grammar_from_lark(read)

    @cached_property
    def _library(self) -> Any:
        try:
            import llguidance.gbnf_to_lark
            import llguidance.hf
        except ImportError as error:
            raise ConfigError('answers that follow a grammar need llguidance: pip install "mmkd[data]"') from error
        return llguidance


class GrammarRows(LogitsProcessor):
    """Leaves each row the tokens alone with which its answer can still become a text of its grammar."""

    def __init__(self, constraint: Constraint, grammars: Sequence[str | None]):
        self.constraint, self.grammars = constraint, grammars
        self.matchers: list[Any] | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # [B, L], [B, V] -> [B, V]
        if self.matchers is None:
            size = scores.shape[1]
            self.matchers = [text and self.constraint.matcher(text, size) for text in self.grammars]
        else:
            for matcher, token in zip(self.matchers, input_ids[:, -1].tolist(), strict=True):
                if matcher and not matcher.is_stopped():  # what follows an answer's end is padding
                    matcher.consume_token(token)
        kept = [self._kept(one, matcher) for one, matcher in zip(scores, self.matchers, strict=True)]
        return torch.stack(kept)

    def _kept(self, scores: Tensor, matcher: Any) -> Tensor:  # [V]
        if not matcher:
            return scores
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")[: len(scores)]
        allowed = torch.from_numpy(bits.astype(bool)).to(scores.device)
        return scores.masked_fill(~allowed, -torch.inf)
