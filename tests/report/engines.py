"""Folders of the data engines: small real runs, and folders in the format of their files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmkd.config.evolve_schema import EvolveConfig
from mmkd.config.programs_schema import ProgramsConfig
from mmkd.data.records import Provenance, Record, Turn
from mmkd.data.scenes import records
from mmkd.data.write_records import write_jsonl
from mmkd.synthesis.competing.assessing import Kind, Outcome, standing
from mmkd.synthesis.competing.items import Item, write_items, write_rows
from mmkd.synthesis.evolving import outcomes
from mmkd.synthesis.evolving.items import Content, Step, Version
from mmkd.synthesis.evolving.run import evolve
from mmkd.synthesis.programs.making.run import make_programs
from tests.synthesis.programs.making.conftest import reply
from tests.synthesis.programs.making.scripted import ScriptedWriter


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def change(path: Path, by: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite each line of a file."""
    rows = lines(path)
    for row in rows:
        by(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def programs_run(out: Path) -> Path:
    """Programs of a scripted writer for questions about two scenes."""
    write_jsonl(out.with_suffix(".jsonl"), records("train", 2, 0, questions=4, single=True))
    with ScriptedWriter(reply) as server:
        writer = {"endpoint": {"url": server.url, "model": "scripted", "license": "MIT", "concurrency": 4}}
        data = [{"source": "jsonl", "path": str(out.with_suffix(".jsonl"))}]
        make_programs(ProgramsConfig.model_validate({"writer": writer, "data": data, "out": str(out)}))
    return out


def evolve_run(out: Path) -> Path:
    """Two embedded rounds on three scenes."""
    data = [{"source": "scenes", "split": "train", "count": 3, "grid": 2}]
    evolve(EvolveConfig.model_validate({"data": data, "out": str(out), "rounds": 2, "per_image": 2, "blind": None}))
    return out


def picture(folder: Path, number: int = 0) -> Path:
    """One of many: no two of them look alike."""
    folder.mkdir(parents=True, exist_ok=True)
    squares = np.random.RandomState(number).randint(0, 256, (4, 6, 3), dtype=np.uint8)
    file = folder / f"{number}.png"
    Image.fromarray(squares).resize((60, 40), Image.Resampling.NEAREST).save(file)
    return file


def compete_folder(out: Path, text: str = "what is this?") -> Path:
    """Two rounds in the format of the true files. `text` stands wherever data or models bring text."""
    image = str(picture(out / "images"))
    items = [Item(f"item {n} {text}", f"{n}: {text}", (image,), text, text, answer=text) for n in range(5)]
    items[1] = replace(items[1], parent=items[0].id, engine="llm/hard", round=1)
    for file in ("given/pool", "given/held_out", "pool/0", "pool/1"):
        write_items(out / f"{file}.jsonl", items)
    scores = {Kind.HARD: (9.0, 2.0), Kind.WIN: (4.0, 8.0), Kind.EASY: (9.0, 9.0), Kind.WEAK: (2.0, 3.0)}
    judged = [
        Outcome(item.id, kind, f"teacher: {text}", f"student: {text}", scores.get(kind), kind is not Kind.WIN, (text,))
        for item, kind in zip(items, [*scores, Kind.UNSCORED], strict=True)
    ]
    rows = []
    for number in range(3):
        held = judged[number:]
        write_rows(out / f"round-{number}" / "held_out.jsonl", (one.row() for one in held))
        bias = {"compared": 4, "disagreed": 1}
        row = {"round": number, "trained": 10 * number, "held_out": asdict(standing(held)) | bias, **bias, "pool": 5}
        if number:
            write_rows(out / f"round-{number}" / "verdicts.jsonl", (one.row() for one in judged))
            new = {"drafted": 8, "kept": 2, "yield": 0.25, "gone": {text: 5, "form": 1}, "pool": 7}
            new["worded"] = {"in other words": 6, text: 2}
            row["refined"] = {"asked": 3, "kept": 1, "words kept": 0.5, "gone": {"still faulty": 1, text: 1}}
            row |= {"pool_standing": asdict(standing(judged)) | bias, "augmented": new if number == 1 else None}
        rows.append(row)
    write_rows(out / "rounds.jsonl", rows)
    return out


def evolve_folder(out: Path, text: str = "what is this?", items: int = 2, pictures: int = 1) -> Path:
    """A round in which the first half of the items grow, in the format of the true files; item N is about picture N,
    counted on from the first where there are fewer."""
    images = [picture(out / "images", number) for number in range(pictures)]
    digests = [sha256(image.read_bytes()).hexdigest() for image in images]
    step = Step(function="grounding", argument=text, boxes=[(0.1, 0.2, 0.5, 0.6)], result="", description=text)
    content = Content(objects=[text[:80]], skills=["ocr"], steps=[step], form="art type", question=text, answer=text)
    turns = [Turn("user", text), Turn("assistant", text)]
    seeds = (Record(str(number), turns, [str(one)], "", "", Provenance()) for number, one in enumerate(images))
    write_jsonl(out / "records.jsonl", seeds)
    files: list[list[str]] = [[], []]
    for number in range(items):
        name = f"{number}:{text}"
        seed = Version(id=f"{name}/v0", content=content)
        about = {"item": name, "index": number % pictures, "image": digests[number % pictures]}
        files[0].append(outcomes.Outcome(**about, round=0, current=seed, kept=True).model_dump_json())
        grown = seed.model_copy(update={"id": f"{name}/v1", "parent": seed.id, "round": 1, "difficulty": 4.0})
        kept = number < items / 2
        left = {} if kept else {"kind": text, "reason": text, "candidate": content}
        one = outcomes.Outcome(
            **about, round=1, current=grown if kept else seed, direction="cognitive", kept=kept, **left,
            parent_difficulty=3.0,
        )  # fmt: skip
        files[1].append(one.model_dump_json())
    (out / "rounds").mkdir()
    for number, rows in enumerate(files):
        (out / "rounds" / f"{number}.jsonl").write_text("\n".join(rows) + "\n")
    return out
