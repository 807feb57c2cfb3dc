"""One step of eight rows for every registered objective, cut into micro batches and ranks as the trainer cuts it.

A rank loads this file by its path, so nothing of `tests` is imported here.
"""

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmkd.config.schema import ObjectiveSection
from mmkd.objectives import AnswerBatch, LayerAttention, Outputs, Pairs, Spans, build

# Options of each objective, with chunks that a step fills several times. infonce has no case: it tells rows of a micro
# batch apart, and is another in another cut.
CASES = {
    "attention_relations": {"heads": 4},
    "cross_entropy": {"chunk": 2},
    "dpo": {"chunk": 2},
    "forward_kl": {"temperature": 2.0, "chunk": 2},
    "generalised_js": {"chunk": 2},
    "hidden_states": {},
    "hidden_states cosine": {"distance": "cosine"},
    "ofa_logits": {"eps": 1.3, "chunk": 2},
    "reverse_kl": {"chunk": 2},
    "simpo": {"chunk": 2},
    "skewed_kl": {"chunk": 2},
    "taid": {"chunk": 2},
    "total_variation": {"chunk": 2},
    "tower_features": {},
    "uld": {"chunk": 2},
    "voco_attention": {"layers": [3], "gram": 0.1, "chunk": 2},
}
LAYERS, HEADS, SHARED_HEADS, WIDTH, TEXT = 4, 4, 2, 8, 7
SIZES = [4, 2, 5, 3, 3, 6, 2, 4]  # answer tokens of each row of the step, so that a mean of means would be another
ROWS = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))
ALL = list(range(len(SIZES)))
POSITIONS = torch.cat([torch.arange(TEXT - 1 - size, TEXT - 1) for size in SIZES])
TOKENS = len(ROWS)
WITH_IMAGE = torch.tensor([True, False, True, True, False, False, True, True])
_SIGNS = ("++--", "+-", "0+---", "++-", "+--", "+++-0-", "+-", "+---")  # one pair a row; tokens of neither answer
SIGNS = torch.tensor(["-0+".index(sign) - 1 for row in _SIGNS for sign in row])
TARGETS = torch.randint(0, 41, (TOKENS,), generator=torch.Generator().manual_seed(7))
SPAN_STARTS = [n for n in range(TOKENS) if n % 3 != 1]
SHARED_IDS = torch.tensor([[0, 3, 7, 20, 40], [5, 3, 1, 30, 39]])


@dataclass
class Side:
    """All numbers of a step on one side; its parts are slices of them, so that gradients meet here."""

    hidden: Tensor  # [N, D]
    weight: Tensor  # [V, D] of the head
    layers: Tensor  # [layers, N, D]
    query: Tensor  # [N, H, d]
    key: Tensor  # [B, Hkv, P + T, d]
    value: Tensor
    tower: Tensor  # [B, C, rows, cols]
    slots: int = field(default=0)  # P, a sink and the tokens of an image

    def tensors(self) -> list[Tensor]:
        return [value for value in vars(self).values() if isinstance(value, Tensor)]

    def outputs(self, rows: list[int], tokens: Tensor, whole: bool) -> Outputs:
        weight = self.weight
        image = WITH_IMAGE[rows][:, None].expand(-1, self.slots).clone()
        image[:, 0] = False
        sink = torch.zeros_like(image)
        sink[:, 0] = True
        return Outputs(
            self.hidden[tokens],
            lambda hidden: hidden @ weight.T,
            {LAYERS - 1: LayerAttention(self.query[tokens], self.key[rows], self.value[rows], WIDTH**-0.5)},
            image,
            sink,
            torch.zeros_like(image).long(),
            hidden={layer: self.layers[layer][tokens] for layer in range(LAYERS)},
            final_norm=lambda hidden: nn.functional.rms_norm(hidden, hidden.shape[-1:]),
            tower=self.tower[rows],
            head_weight=weight if whole else None,
            compressed=True,
        )


def sides(dtype: torch.dtype = torch.float32) -> tuple[Side, Side]:
    """A student and a teacher of other widths and a wider vocabulary; their numbers fit bf16 without rounding."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).bfloat16().to(dtype)

    found = []
    for width, vocabulary, slots, grid in ((12, 41, 3, (4, 4)), (16, 43, 6, (3, 5))):
        heads = [(SHARED_HEADS, slots + TEXT)] * 2
        found.append(
            Side(
                random(TOKENS, width),
                (0.5 * random(vocabulary, width)).bfloat16().to(dtype),
                random(LAYERS, TOKENS, width),
                random(TOKENS, HEADS, WIDTH),
                *(random(len(SIZES), *shape, WIDTH) for shape in heads),
                random(len(SIZES), width, *grid),
                slots,
            )
        )
    student, teacher = found
    for tensor in student.tensors():
        tensor.requires_grad_()
    return student, teacher


def objective(case: str):
    torch.manual_seed(3)
    made = build(ObjectiveSection.model_validate({"name": case.split()[0]} | CASES[case]))
    made.needs(LAYERS, LAYERS)
    made.make_heads(12, 16)  # of the decoders, and as wide as the towers
    return made


def batch(made, rows: list[int], tokens: Tensor, share: float) -> AnswerBatch:
    """The rows of a step as one micro batch. `share`: 1 / (ranks x accumulation), as the trainer scales normalizers."""
    places = torch.tensor([rows.index(int(row)) for row in ROWS[tokens]])
    starts = torch.tensor([tokens.tolist().index(n) for n in SPAN_STARTS if n in tokens])
    matched = torch.tensor([n % 2 == 0 for n in SPAN_STARTS if n in tokens])
    return AnswerBatch(
        TARGETS[tokens],
        places,
        POSITIONS[tokens],
        torch.ones(len(rows), TEXT, dtype=torch.bool),
        torch.zeros(len(rows), TEXT, dtype=torch.long),
        TOKENS * share,
        spans=Spans(starts, starts, matched, SHARED_IDS),
        images=WITH_IMAGE[rows],
        image_normalizer=int(WITH_IMAGE.sum()) * share,
        pairs=Pairs(SIGNS[tokens] * (places + 1), len(rows), len(SIZES) * share) if made.reads_pairs else None,
    )


def step(made, pair: tuple[Side, Side], parts: list[list[int]], world: int = 1, whole: bool = False) -> Tensor:
    """What one rank's micro batches sum to: DeepSpeed averages over ranks, the trainer over accumulation."""
    losses = []
    for rows in parts:
        tokens = torch.isin(ROWS, torch.tensor(rows)).nonzero()[:, 0]
        student, teacher = (side.outputs(rows, tokens, whole) for side in pair)
        losses.append(made(student, teacher, batch(made, rows, tokens, 1 / (world * len(parts)))).loss)
    return torch.stack(losses).mean()


def learned(made, pair: tuple[Side, Side], loss: Tensor, world: int = 1) -> list[Tensor]:
    """The loss, its gradient on all that is trained, and what the objective itself has learned from the step."""
    found = [
        loss.detach(),
        *torch.autograd.grad(loss, [*pair[0].tensors(), *made.parameters()], materialize_grads=True),
    ]
    for tensor in found if world > 1 else []:
        dist.all_reduce(tensor)
        tensor /= world
    made.step_finished(0.25)
    return [*found, *(buffer.nan_to_num() for buffer in made.buffers())]


def cut(rows: list[int], accumulation: int) -> list[list[int]]:
    """The rows as so many micro batches."""
    size = len(rows) // accumulation
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def of_a_rank(accumulation: int) -> dict[str, list]:
    """What every objective taught on one of two ranks, which has half of the step's rows."""
    dist.init_process_group("gloo")
    parts = cut(cut(ALL, 2)[dist.get_rank()], accumulation)
    found = {}
    for name in CASES:
        pair, made = sides(), objective(name)
        tensors = learned(made, pair, step(made, pair, parts, world=2), world=2)
        found[name] = [tensor.numpy() for tensor in tensors]
    return found
