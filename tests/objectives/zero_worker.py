"""One rank of the ZeRO test of token losses; a module of its own so that a fork server can load it once."""

import os
import socket
from multiprocessing import get_context

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from torch import nn

from mmkd.objectives import TAID, AnswerBatch, CrossEntropy, ForwardKL, Outputs, token_losses
from mmkd.objectives.chunked import split_sizes

WIDTH, VOCABULARY, CHUNK = 16, 33, 7
ANSWERS = [23, 0]  # of each rank: four head calls on one, none needed on the other


class Student(nn.Module):
    """A tied embedding, a layer and a head, with the loss inside forward as a training task has it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight
        teacher = nn.Linear(WIDTH, VOCABULARY, bias=False).requires_grad_(False)
        object.__setattr__(self, "teacher", teacher)
        self.taid = TAID(alpha=0.5, momentum=0.5, chunk=CHUNK)
        self.terms = [(CrossEntropy(CHUNK), 1.0), (ForwardKL(2.0, CHUNK), 1.0), (self.taid, 1.0)]

    def forward(self, ids: torch.Tensor, answers: torch.Tensor, normalizer: float, calls: int | None) -> torch.Tensor:
        hidden = torch.tanh(self.layer(self.embedding(ids)))[answers]  # [N, D]
        none = torch.zeros(1, 0, dtype=torch.bool)
        student = Outputs(hidden, self.head, {}, none, none, none.long())
        teacher = Outputs(hidden.detach() * 2 - 1, self.teacher, {}, none, none, none.long())
        zeros = torch.zeros(len(hidden), dtype=torch.long)
        targets = (ids[answers] + 1) % VOCABULARY
        batch = AnswerBatch(targets, zeros, zeros, torch.ones(1, 1).bool(), torch.zeros(1, 1).long(), normalizer, calls)
        return token_losses(self.terms, student, teacher, batch).loss


def data(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.arange(30).add(rank * 11) % VOCABULARY
    return ids, torch.arange(30) < ANSWERS[rank]


def train_alone(steps: int) -> list[torch.Tensor]:
    """The same global batch in one plain process."""
    model = Student()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(model(*data(rank), sum(ANSWERS), None) for rank in range(len(ANSWERS))).backward()
        optimizer.step()
        model.taid.step_finished(0.01)
    return [p.detach() for p in (*model.parameters(), model.taid.t)]


def train_on_ranks(stage: int, steps: int, folder: str) -> list[list[torch.Tensor]]:
    """Parameters of each rank after some steps under ZeRO, and TAID's t as a checkpoint in `folder` brings it back."""
    context = get_context("forkserver")
    results = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        context.Process(target=_rank, args=(rank, port, stage, steps, folder, results)) for rank in range(len(ANSWERS))
    ]
    for process in ranks:
        process.start()
    found = dict(results.get(timeout=60) for _ in ranks)
    for process in ranks:
        process.join(30)
    return [[torch.tensor(p) for p in found[rank]] for rank in sorted(found)]


def _rank(rank: int, port: int, stage: int, steps: int, folder: str, results) -> None:
    torch.set_num_threads(1)
    world = str(len(ANSWERS))
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # or a compiler runs for a minute
    deepspeed.init_distributed("gloo")
    model = Student()
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        # No parameter is small enough to stay whole: every call of the head gathers.
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    calls = max(len(split_sizes(n, CHUNK)) for n in ANSWERS)
    for _ in range(steps):
        engine.backward(engine(*data(rank), sum(ANSWERS) / len(ANSWERS), calls))
        engine.step()
        model.taid.step_finished(0.01)
    engine.save_checkpoint(folder, exclude_frozen_parameters=True)
    model.taid.t.fill_(0.0)
    engine.load_checkpoint(folder)
    parameters = list(engine.module.parameters())
    with deepspeed.zero.GatheredParameters(parameters, enabled=stage == 3):
        results.put((rank, [p.detach().float().tolist() for p in (*parameters, model.taid.t)]))
    dist.barrier()
    dist.destroy_process_group()
