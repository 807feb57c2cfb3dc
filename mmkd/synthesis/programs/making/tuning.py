"""A writer tuned on programs that held, its own or another's: one round of self-improvement."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmkd.checkpoints import is_complete, keep_newest, latest_complete, mark_complete
from mmkd.config.programs_schema import TuneSection
from mmkd.contracts import Spec, adapter
from mmkd.data.records import Record
from mmkd.errors import ConfigError
from mmkd.precision import native_bf16
from mmkd.synthesis.requests import digest
from mmkd.whole_files import write_whole

IGNORED = -100


def tune(source: str, records: Sequence[Record], section: TuneSection, out: Path) -> Path:
    """Train a decoder on the last turn of each record and leave it, with its tokenizer, at OUT.

    Killed, the same call goes on from the newest whole checkpoint; where OUT is whole it returns at once. Beside OUT
    stands what it was tuned by, OUT.json.

    Args:
        source: the decoder, as student.language.source.
        records: text only; what stands before the last turn is read, not trained on.

    Raises: ConfigError where the train extra is not installed, the decoder has no chat template, records is empty, or
        OUT was tuned by something else.
    """
    if not records:
        raise ConfigError("no program was verified, so there is nothing to tune the writer on. Raise samples.")
    checkpoints = out.with_name(f".{out.name}.checkpoints")
    _same(source, records, section, out, checkpoints)
    if is_complete(out):
        return out
    try:
        import torch
        from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
    except ImportError as error:
        raise ConfigError('tuning the writer needs the train extra. pip install "mmkd[train]"') from error

    class Whole(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            folder = Path(args.output_dir)
            mark_complete(folder / f"checkpoint-{state.global_step}")
            keep_newest(folder, 1)

    set_seed(section.seed)
    spec = Spec.parse(source)
    parts = adapter("language", spec)().load(spec, pretrained=True)
    model, tokenizer = parts.model.float(), parts.tokenizer
    rows = [encoded(record, tokenizer) for record in records]
    model, lora = _adapted(model, section)
    on_cpu = not torch.cuda.is_available()
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    settings = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=section.steps,
        per_device_train_batch_size=section.batch_size,
        learning_rate=section.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(0.05 * section.steps),
        seed=section.seed,
        save_steps=section.save_every,
        logging_strategy="no",
        report_to=[],
        bf16=native_bf16(on_cpu),
        use_cpu=on_cpu,
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model,
        args=settings,
        train_dataset=rows,  # type: ignore[arg-type]  # any sequence of rows will do
        data_collator=lambda batch: padded(batch, pad),
        callbacks=[Whole()],
    )
    last = latest_complete(checkpoints)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    shutil.rmtree(out, ignore_errors=True)
    (model.merge_and_unload() if lora else model).save_pretrained(out)
    tokenizer.save_pretrained(out)
    mark_complete(out)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return out


def _same(source: str, records: Sequence[Record], section: TuneSection, out: Path, checkpoints: Path) -> None:
    """Raises ConfigError where OUT, or what a kill left of it, was tuned by other settings or records."""
    file = out.with_name(f"{out.name}.json")
    # How often, and how often it is kept, make no other weights; examples make other records.
    settings = section.model_dump(mode="json", exclude={"rounds", "save_every", "examples"})
    turns = [[(turn.role, turn.text) for turn in record.turns] for record in records]
    new = {"source": source, **settings, "records": digest(turns)}
    if not (out.exists() or checkpoints.exists()):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, [json.dumps(new, indent=1), "\n"])
        return
    old = json.loads(file.read_text()) if file.exists() else {}
    changed = [key for key in new if new[key] != old.get(key)]
    if changed:
        raise ConfigError(
            f"{out} was tuned with other {', '.join(changed)} than now. Take the old ones, give another "
            f"folder as out, or delete {out} and {checkpoints} to have it tuned again."
        )


def encoded(record: Record, tokenizer: Any) -> dict[str, list[int]]:
    """Token ids of a chat, and labels for its last turn with what ends it."""
    if not tokenizer.chat_template:
        raise ConfigError("the writer has no chat template, without which its own words cannot be told from the rest.")
    turns = [{"role": turn.role, "content": turn.text} for turn in record.turns]
    prompt = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, tokenize=False)
    # Not the template's own end: some put a newline after it, which no sample contains.
    end = tokenizer.eos_token
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    said = tokenizer(turns[-1]["content"] + end, add_special_tokens=False)["input_ids"]
    return {"input_ids": before + said, "labels": [IGNORED] * len(before) + said}


def padded(batch: Sequence[dict[str, list[int]]], pad: int) -> dict[str, Any]:
    """input_ids, attention_mask, labels [B, T], padded on the right."""
    import torch

    longest = max(len(row["input_ids"]) for row in batch)

    def filled(values: list[int], value: int) -> list[int]:
        return values + [value] * (longest - len(values))

    return {
        "input_ids": torch.tensor([filled(row["input_ids"], pad) for row in batch]),
        "attention_mask": torch.tensor([filled([1] * len(row["input_ids"]), 0) for row in batch]),
        "labels": torch.tensor([filled(row["labels"], IGNORED) for row in batch]),
    }


def _adapted(model: Any, section: TuneSection) -> tuple[Any, bool]:
    if section.lora_rank is None:
        return model, False
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=section.lora_rank, target_modules="all-linear")), True
