"""Under ZeRO-3 the head's weight is gathered once each way, however many chunks of answer tokens pass it."""

from __future__ import annotations

from typing import Any

import pytest
import ranks
import torch

from mmkd.compose import load
from mmkd.config.schema import TeacherSection
from mmkd.objectives import CrossEntropy, ForwardKL, Objective
from mmkd.objectives.chunked import split_sizes
from mmkd.teachers.live import build_teacher
from mmkd.train.task import DistillTask

# Of both ranks at each step; the last two are alike, as DeepSpeed goes by its record of the step before where it can.
ANSWERS = [(7, 2), (3, 6), (8, 8), (8, 8)]
LENGTH = 9
CHUNKS = (512, 2)


def task(student: str, teacher: str, chunk: int) -> DistillTask:
    torch.manual_seed(0)
    objectives: list[tuple[Objective, float]] = [(CrossEntropy(chunk), 1.0), (ForwardKL(2.0, chunk), 0.5)]
    section = TeacherSection(kind="live", model=teacher)
    made = DistillTask(
        load(student).model, objectives, build_teacher(section, torch.float32, "sdpa", torch.device("cpu"))
    )
    made.student.vision_tower.requires_grad_(False)
    return made.train()


def batch(rank: int, step: int, chunk: int, world: int) -> dict[str, Any]:
    text = (torch.arange(LENGTH) * (7 + rank) + 11 * step).remainder(200)[None] + 5
    labels = torch.full_like(text, -100)
    labels[:, LENGTH - ANSWERS[step][rank] :] = text[:, LENGTH - ANSWERS[step][rank] :]
    return {
        "input_ids": text,
        "labels": labels,
        "attention_mask": torch.ones_like(text),
        "position_ids": torch.arange(LENGTH)[None],
        "segment_ids": torch.zeros_like(text),
        "pixel_values": torch.ones(1, 3, 32, 32),
        "image_tiles": torch.tensor([1]),
        "image_rows": torch.tensor([0]),
        "image_segments": torch.tensor([0]),
        "normalizer": torch.tensor(sum(ANSWERS[step]) / world),
        "head_calls": max(len(split_sizes(count, chunk)) for count in ANSWERS[step]),
        "reads": [None, 2],
    }


def numbers(model: DistillTask) -> dict[str, Any]:
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters() if p.requires_grad}


def on_a_rank(students: list[str], teacher: str) -> list[dict[str, Any]]:
    """What `steps` says of every student with every size of chunks."""
    from mmkd.train.deepspeed import prepare_launch

    rank, world = prepare_launch("auto")
    import deepspeed

    deepspeed.init_distributed("gloo", verbose=False)
    return [steps(student, teacher, chunk, rank, world) for student in students for chunk in CHUNKS]


def steps(student: str, teacher: str, chunk: int, rank: int, world: int) -> dict[str, Any]:
    """How often the head's weight was gathered and the head called in each step, how its weight was seen while the
    decoder ran, and what was learned."""
    import deepspeed

    model = task(student, teacher, chunk)
    unused = ("param_persistence_threshold", "prefetch_bucket_size", "max_reuse_distance")
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        # As for a model that fills the memory: nothing stays whole longer than it is used.
        "zero_optimization": {"stage": 3} | {f"stage3_{name}": 0 for name in unused},
    }
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    module = model.student.get_output_embeddings()
    head = module.weight
    now: list[str] = []  # events of this step

    def seen(gather):
        def all_gather(parameters, *args, **options):
            now.extend("gather" for parameter in parameters if parameter is head)
            return gather(parameters, *args, **options)

        return all_gather

    for parameter in model.parameters():  # DeepSpeed asks the first of those that it gathers together
        parameter.all_gather_coalesced = seen(parameter.all_gather_coalesced)
    module.register_forward_hook(lambda *_: now.append("call"))
    states: set[str] = set()
    model.student.decoder.layers[0].register_forward_hook(lambda *_: states.add(head.ds_status.name))
    gathers, calls = [], []
    for step in range(len(ANSWERS)):
        now.clear()
        engine.backward(engine(batch(rank, step, chunk, world)))
        gathers.append(now.count("gather"))
        calls.append(now.count("call"))
        engine.step()
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        return {"gathers": gathers, "calls": calls, "states": states, "learned": numbers(model)}


def alone(student: str, teacher: str) -> dict[str, Any]:
    """The same steps of one plain process."""
    model = task(student, teacher, 512)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(len(ANSWERS)):
        optimizer.zero_grad()
        sum(model(batch(rank, step, 512, 1)) for rank in (0, 1)).backward()
        optimizer.step()
    return numbers(model)


@pytest.mark.distributed
def test_the_head_is_gathered_once_each_way_however_many_chunks_pass_it(untied_student, student, teacher):
    students = [str(untied_student), str(student)]
    expected = [alone(each, str(teacher)) for each in students]
    for results in ranks.on_ranks(2, ranks.call, __file__, "on_a_rank", students, str(teacher)):
        untied, tied = results[:2], results[2:]
        for wanted, found in zip(expected, (untied, tied), strict=True):
            one, many = found
            assert one["calls"] == [2, 2, 2, 2]  # two token counts are read
            assert many["calls"] == [2 * 4, 2 * 3, 2 * 4, 2 * 4]  # a call for each chunk, and none again in backward
            assert many["gathers"] == one["gathers"]
            for result in found:
                for name, parameter in wanted.items():
                    there = torch.as_tensor(result["learned"][name])
                    torch.testing.assert_close(there, torch.as_tensor(parameter), atol=2e-6, rtol=1e-5, msg=name)
        assert untied[0]["gathers"] == [2 * 2] * 4
        assert untied[1]["states"] == {"NOT_AVAILABLE"}
