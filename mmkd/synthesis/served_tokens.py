"""An endpoint's tokens and log-probabilities in the student's token ids, where both cut an answer alike."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from mmkd.data.byte_spans import byte_table, ids_by_bytes
from mmkd.data.rejected import BadRow
from mmkd.data.teacher_rows import Rows
from mmkd.models.processing_mmkd import MmkdProcessor
from mmkd.synthesis.requests import ScoredToken, TokenScore
from mmkd.teachers.targets import DTYPES, TargetSettings, stored
from mmkd.teachers.tokenizers import vocabulary_size

OVER = 1.01  # more than rounding can make of probabilities that sum to 1


class TokenMap:
    """Tokens as an endpoint writes them -> ids of the student's tokenizer.

    A token is the student's where both stand for the same bytes, or where it is one of the student's special tokens by
    name. Nothing is guessed: one that an endpoint shows by a replacement character, without its bytes, is nobody's.

    Attributes:
        strange: how often likely tokens were met that the student does not have, by name; their mass stays among all
            others'.

    Raises: ConfigError for a tokenizer whose tokens cannot be read as bytes.
    """

    def __init__(self, student: MmkdProcessor):
        tokenizer = student.tokenizer
        self.table = byte_table(tokenizer)
        self.vocabulary = vocabulary_size(tokenizer)
        self._ids = ids_by_bytes(tokenizer)
        self._special = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._names = {i: token for token, i in tokenizer.get_vocab().items()}
        self.strange: Counter[str] = Counter()

    def id_of(self, score: TokenScore) -> int | None:
        data = score.token.encode() if score.bytes is None else bytes(score.bytes)
        # Half a character has no text of its own: some endpoints send the bytes of the mark that stands for it.
        broken = "\ufffd" in score.token and data == score.token.encode()
        found = None if broken else self._ids.get(data)
        return self._special.get(score.token) if found is None else found

    def rows(self, ids: Sequence[int], scored: Sequence[ScoredToken], settings: TargetSettings) -> Rows:
        """What is kept of one answer: the arrays of `mmkd.teachers.targets.keep`, for its tokens `ids`.

        Of the token that ends an answer, most endpoints say nothing: it gets no ids and no mass, and then nothing is
        learnt there from the teacher.

        Raises: BadRow where endpoint and student cut the answer in other tokens, naming the first; or where its
            log-probabilities are none.
        """
        scored = self._without_blank_end(scored)
        kept = [self._row(place, i, scored, settings.k) for place, i in enumerate(ids)]
        if len(scored) > len(ids):
            raise _parted(len(ids), repr(scored[len(ids)].token), "no more")
        entries = [entry for found, _, _ in kept for entry in found]
        arrays = {
            "ids": torch.tensor([i for i, _ in entries], dtype=torch.long),
            "log_probs": torch.tensor([log_prob for _, log_prob in entries]),
            "counts": torch.tensor([len(found) for found, _, _ in kept]),
            "tail": torch.tensor([tail for _, tail, _ in kept]),
            "answers": torch.tensor([answer for _, _, answer in kept]),
            "best": torch.tensor(ids),  # an answer of temperature 0 is the likeliest token each time
        }
        return {name: stored(name, array, self.vocabulary, DTYPES[settings.dtype]) for name, array in arrays.items()}

    def _without_blank_end(self, scored: Sequence[ScoredToken]) -> Sequence[ScoredToken]:
        """Up to the last token that says something, where blank ones follow it: an answer is kept without them, and
        what the model thought of its end, it thought behind them."""
        said = [place for place, one in enumerate(scored) if one.token.strip() and one.token not in self._special]
        rest = scored[said[-1] + 1 :] if said else []
        return scored[: said[-1] + 1] if any(one.token and not one.token.strip() for one in rest) else scored

    def _row(
        self, place: int, i: int, scored: Sequence[ScoredToken], k: int
    ) -> tuple[list[tuple[int, float]], float, float]:
        """(ids with their log-probabilities, log of the mass of all others, log-probability of the answer's token)."""
        if place >= len(scored):
            if self.table[i]:
                raise _parted(place, "no more", repr(self._names[i]))
            return [], -math.inf, math.nan
        token = scored[place]
        chosen = i if not self.table[i] and not token.token else self.id_of(token)  # "" in the place of an end token
        if chosen != i:
            raise _parted(place, repr(token.token), repr(self._names[i]))
        found = {i: token.logprob}
        for other in token.top_logprobs:
            known = self.id_of(other)
            if known is not None:
                found.setdefault(known, other.logprob)
            elif other.token != token.token:
                self.strange[other.token] += 1
        mass = sum(map(math.exp, found.values()))
        if mass > OVER:
            raise BadRow(f"token {place + 1}: the endpoint's probabilities sum to {mass:.3f}.", "no probabilities")
        likeliest = sorted(found.items(), key=lambda entry: -entry[1])[:k]
        left = 1 - sum(math.exp(log_prob) for _, log_prob in likeliest)
        return likeliest, math.log(left) if left > 0 else -math.inf, token.logprob


def joined(answers: Sequence[Rows]) -> Rows:
    """The answers of one record, one after the other."""
    return {name: np.concatenate([rows[name] for rows in answers]) for name in answers[0]}


def _parted(place: int, theirs: str, ours: str) -> BadRow:
    return BadRow(
        f"token {place + 1} of the answer is {theirs} for the endpoint and {ours} for the student: its log-probs speak "
        "of other tokens. Give the student the served model's tokenizer, or train on the answers alone (mmkd answer).",
        "tokens differ",
    )
