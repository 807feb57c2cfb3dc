"""Models of this process as back ends: calls that wait are answered in one batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from mmkd.errors import DataError
from mmkd.models import VocoCache
from mmkd.synthesis.backends import Call, Refused
from mmkd.synthesis.constraint import Constraint
from mmkd.synthesis.prefixes import prefixes
from mmkd.synthesis.requests import Completion, ScoredToken, TokenScore, Usage
from mmkd.synthesis.sampling import RowSampler

Inputs = dict[str, Any]  # of `generate`, for one chat
ROWS = ("input_ids", "attention_mask")
LEAST_LOG_PROB = -1e4  # what stands for a token that cannot come


class LocalModel:
    """See `Backend`. One thread generates at a time; what comes meanwhile makes the next batch.

    A row's answer does not depend on the rows beside it, but for rounding: a killed run that goes on with other batches
    ends with the same answers.

    Args:
        name: identity, weights included.
        prepare: a call as (arguments of `generate` with a batch of one, tokens that an answer may have); raises
            DataError for a chat that the model cannot read.
        generation: further arguments of `generate`; its eos_token_id is a list.
    """

    def __init__(
        self,
        name: str,
        license: str | None,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prepare: Callable[[Call], tuple[Inputs, int]],
        generation: dict[str, Any],
        batch_size: int,
    ):
        self.model, self.license, self.batch_size = name, license, batch_size
        self.extra_body: dict[str, Any] = {}
        self.concurrency = 2 * batch_size  # one batch waits while the other is answered
        self._generator, self._tokenizer, self._prepare, self._generation = model, tokenizer, prepare, generation
        self._constraint = Constraint(tokenizer, generation["eos_token_id"])
        self._waiting: list[tuple[Call, asyncio.Future[Completion]]] = []
        self._running: asyncio.Task | None = None

    async def complete(self, call: Call) -> Completion:
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._waiting.append((call, future))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await future

    async def close(self) -> None:
        if self._running is not None:
            await self._running

    async def _run(self) -> None:
        while self._waiting:
            await asyncio.sleep(0)  # calls that are on their way here join the batch
            batch, self._waiting = self._waiting[: self.batch_size], self._waiting[self.batch_size :]
            try:
                results = await asyncio.to_thread(self.generate, [call for call, _ in batch])
            except BaseException as error:
                results = [error] * len(batch)
            for (_, future), result in zip(batch, results, strict=True):
                if isinstance(result, BaseException):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    @torch.inference_mode()
    def generate(self, calls: Sequence[Call]) -> list[Completion | BaseException]:
        """The completion of each call, or why it has none."""
        results: list[Completion | BaseException | None] = [None] * len(calls)
        ready: list[tuple[int, Inputs, int]] = []
        for index, call in enumerate(calls):
            try:
                inputs, room = self._prepare(call)
                ready.append((index, inputs, min(room, call.sampling.max_tokens)))
            except DataError as error:
                results[index] = Refused(getattr(error, "kind", "refused by the model"), str(error))
        if ready:
            completions = self._batch([(calls[i], inputs, most) for i, inputs, most in ready])
            for (index, _, _), completion in zip(ready, completions, strict=True):
                results[index] = completion
        return [result for result in results if result is not None]

    def _batch(self, rows: list[tuple[Call, Inputs, int]]) -> list[Completion]:
        inputs = self._read_once(joined([inputs for _, inputs, _ in rows], self._generation["pad_token_id"]))
        sampler = RowSampler([call.sampling for call, _, _ in rows])
        wanted = [call.sampling.log_probs for call, _, _ in rows]
        constrained = self._constraint.rows([call for call, _, _ in rows])
        generated = self._generator.generate(
            **inputs,
            **self._generation,
            do_sample=False,
            max_new_tokens=max(most for _, _, most in rows),
            logits_processor=LogitsProcessorList([constrained, sampler] if constrained else [sampler]),
            return_dict_in_generate=True,
            output_logits=any(wanted),
        )
        new = generated.sequences[:, inputs["input_ids"].shape[1] :].tolist()
        lengths = inputs["attention_mask"].sum(1).tolist()
        completions = [self._completion(ids[:most], length) for (_, _, most), ids, length in zip(rows, new, lengths)]
        return [
            replace(one, tokens=self._scored(new[row][: one.usage.answer_tokens], generated.logits, row, wanted[row]))
            if wanted[row]
            else one
            for row, one in enumerate(completions)
        ]

    def _read_once(self, inputs: Inputs) -> Inputs:
        """`inputs`, with what several prompts begin with read already, once for all of them: keys and values are in the
        cache, and rows are [padding, prefix, padding, rest]. As they were where nothing would be saved, a prompt is
        more than text, or the cache is of a kind that cannot be repeated so."""
        if set(inputs) != set(ROWS):
            return inputs
        prompts = [ids[seen == 1].tolist() for ids, seen in zip(inputs["input_ids"], inputs["attention_mask"])]
        slides = _slides(self._generator.config.get_text_config())
        lengths = prefixes(prompts, only_equal=slides)  # padding within a row would count against a window
        if lengths is None:
            return inputs
        pad, device = self._generation["pad_token_id"], inputs["input_ids"].device
        if not slides:
            # generate takes a prompt that ends with the padding token, as turns of some templates do, for a padded one.
            lengths = [max(_without_last(prompt[:length], pad), 1) for prompt, length in zip(prompts, lengths)]
        heads = [tuple(prompt[:length]) for prompt, length in zip(prompts, lengths)]
        places = {head: place for place, head in enumerate(dict.fromkeys(heads))}
        shared = joined([_row(head, device) for head in places], pad)
        rest = joined([_row(prompt[length:], device) for prompt, length in zip(prompts, lengths)], pad)
        read = self._generator.generate(
            **shared, **self._generation, do_sample=False, max_new_tokens=1, return_dict_in_generate=True
        ).past_key_values
        if not all(hasattr(layer, "batch_select_indices") for layer in getattr(read, "layers", [None])):
            return inputs  # a recurrent state, which transformers cannot repeat
        rows = torch.tensor([places[head] for head in heads], device=device)
        read.batch_select_indices(rows)
        return {name: torch.cat([shared[name][rows], rest[name]], 1) for name in ROWS} | {"past_key_values": read}

    def _scored(self, ids: list[int], logits: Sequence[Tensor], row: int, count: int) -> tuple[ScoredToken, ...]:
        """Tokens of a reply with their natural log-probabilities, before any temperature, as an endpoint tells them.

        Args:
            logits: [B, V] of each step.
        """
        found = []
        for token, scores in zip(ids, logits, strict=False):
            if token in self._generation["eos_token_id"]:
                break
            log_probs = scores[row].float().log_softmax(-1)  # [V]
            likeliest = log_probs.topk(min(count, len(log_probs)))
            top = [self._token(*pair) for pair in zip(likeliest.indices.tolist(), likeliest.values.tolist())]
            said = self._token(token, float(log_probs[token]))
            found.append(ScoredToken(token=said.token, logprob=said.logprob, top_logprobs=top))
        return tuple(found)

    def _token(self, token: int, log_prob: float) -> TokenScore:
        return TokenScore(token=self._tokenizer.decode([token]), logprob=max(log_prob, LEAST_LOG_PROB))

    def _completion(self, new: list[int], prompt_tokens: int) -> Completion:
        ends = set(self._generation["eos_token_id"])
        stop = next((i for i, token in enumerate(new) if token in ends), None)
        text = self._tokenizer.decode(new[:stop], skip_special_tokens=True).strip()
        usage = Usage(prompt_tokens, len(new) if stop is None else stop + 1)
        return Completion(text, usage, "length" if stop is None else "stop")


def _slides(text: PreTrainedConfig) -> bool:
    """Whether some layer sees a window of the last tokens only."""
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"]
    return bool(getattr(text, "sliding_window", None)) and "sliding_attention" in kinds


def _without_last(ids: Sequence[int], token: int) -> int:
    """Tokens before the last ones that are this token."""
    return next((count for count in range(len(ids), 0, -1) if ids[count - 1] != token), 0)


def _row(ids: Sequence[int], device: torch.device) -> Inputs:
    return {
        "input_ids": torch.tensor([ids], device=device),
        "attention_mask": torch.ones(1, len(ids), device=device).long(),
    }


def joined(chats: list[Inputs], pad: int) -> Inputs:
    """Arguments of one `generate` for several chats, their prompts padded on the left; images stay in order."""
    longest = max(chat["input_ids"].shape[1] for chat in chats)
    batch: Inputs = {}
    for name in dict.fromkeys(name for chat in chats for name in chat):
        values = [chat[name] for chat in chats if name in chat]
        if name in ROWS:
            fill = pad if name == "input_ids" else 0
            values = [torch.nn.functional.pad(value, (longest - value.shape[1], 0), value=fill) for value in values]
        if isinstance(values[0], torch.Tensor):
            batch[name] = torch.cat(values)
        elif isinstance(values[0], VocoCache):
            batch[name] = VocoCache.join(values)
        else:
            batch[name] = values[0]  # voco_tokens, the same in all
    return batch
