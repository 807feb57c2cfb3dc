"""OFA-KD's language half: layers of the student, read through the teacher's own head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmkd.objectives.base import AnswerBatch, Losses, Needs, Objective, Outputs, Ratio
from mmkd.objectives.checks import choice, count, number
from mmkd.objectives.chunked import ChunkLogits, sum_over_chunks
from mmkd.objectives.ofa import FORMS, ofa_from_log_probs
from mmkd.objectives.registry import register
from mmkd.objectives.sparse import NOWHERE

STAGES = 4


@register("ofa_logits")
class OfaLogits(Objective):
    """OFA-KD (Hao et al., NeurIPS 2023, arXiv 2310.19444) for decoders of any two families that share a tokenizer.

    The student's hidden states at 25, 50, 75 and 100 % of its depth become logits in the teacher's own space,

        z_stage = head_t(norm_t(W_stage rms(h_stage)))        W_stage trained, norm_t and head_t frozen

    and each stage learns from the teacher's final logits by `ofa.ofa_loss`, the next token being the target. Summed
    over answer tokens, mean over stages. rms() has no weights: W_stage would absorb them. A stage costs D_s D_t
    parameters, which are trained with the student and never exported. Tokens that the teacher does not have are left
    out.

    The final logits of the student itself are for `cross_entropy` and `forward_kl` to teach.

    With `top_k` the classes of a token are the teacher's k likeliest ids, the target, and one bucket of all other ids
    together; both sides' mass of that one is the log-sum-exp over those ids, so that no digits are lost where it is
    small. Every term of the forms is then one of k + 1 (target among the k) or k + 2 classes, the bucket's p^t and log
    p^s included; with k the whole vocabulary that is the loss without it.

    Args:
        eps: enhancement of the target, >= 1 (gamma in the paper).
        form: "paper" or "released", see `ofa`.
        top_k: ids of the teacher that are classes of their own; None takes all.
        chunk: answer tokens whose logits, of all stages, stand in memory at once.
    """

    teacher = True

    def __init__(self, eps: float = 1.0, form: str = "paper", top_k: int | None = None, chunk: int = 128):
        super().__init__()
        self.eps = number(self.name, "eps", eps, least=1)
        self.form = choice(self.name, "form", form, FORMS)
        self.top_k = None if top_k is None else count(self.name, "top_k", top_k)
        self.chunk = count(self.name, "chunk", chunk)
        self.stages: list[int] = []
        self.heads = nn.ModuleList()

    def needs(self, student_layers: int, teacher_layers: int | None) -> Needs:
        # Students of fewer than four layers have fewer stages.
        self.stages = sorted({-(-student_layers * part // STAGES) - 1 for part in range(1, STAGES + 1)})
        return Needs(True, student_hidden=tuple(self.stages), teacher_head=True)

    def make_heads(self, student_width: int, teacher_width: int | None) -> None:
        if teacher_width is not None:
            self.heads = nn.ModuleList(nn.Linear(student_width, teacher_width, bias=False) for _ in self.stages)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: AnswerBatch) -> Losses:
        if teacher is None or teacher.final_norm is None or not self.heads:
            raise ValueError("ofa_logits: call needs() and make_heads() first, and give it the teacher's outputs.")
        norm, head = teacher.final_norm, teacher.head
        states = [
            linear(_rms(student.hidden[layer]).to(linear.weight.dtype))
            for layer, linear in zip(self.stages, self.heads, strict=True)
        ]
        # The teacher's head turns both sides' states into logits, here with the stages of a token side by side.
        sums, correct = sum_over_chunks(
            self._chunk,
            batch.answer_ids,
            torch.stack(states, 1).to(teacher.answer_hidden.dtype),  # [N, stages, D_t]
            lambda hidden: head(norm(hidden)),
            teacher.answer_hidden,
            head,
            chunk=self.chunk,
            vocabulary=teacher.vocabulary,
        )
        tokens = torch.tensor(len(batch.answer_ids), device=sums.device)
        report = {"ofa": Ratio(sums.detach().mean(), tokens)}
        for stage, layer in enumerate(self.stages):
            report[f"ofa/layer_{layer}"] = Ratio(sums[stage].detach(), tokens)
            report[f"ofa_accuracy/layer_{layer}"] = Ratio(correct[stage], tokens)
        return Losses(sums.mean() / batch.normalizer, report)

    def _chunk(self, logits: ChunkLogits) -> tuple[Tensor, Tensor]:
        """OFA's loss, and how often the likeliest token is the target, of each stage, summed over the chunk: [stages].

        `logits.student` is [n, stages, V].
        """
        known = logits.targets < logits.shared
        targets = logits.targets.clamp(max=logits.shared - 1)
        stages = [stage[:, : logits.shared] for stage in logits.student.unbind(1)]  # [n, shared] each
        if self.top_k is None or self.top_k >= logits.shared:
            teacher = logits.teacher_log_probs()
            students = (torch.log_softmax(stage, -1, dtype=teacher.dtype) for stage in stages)
        else:
            theirs = logits.teacher_logits()[:, : logits.shared]
            ids = torch.cat([targets[:, None], theirs.topk(self.top_k).indices], 1)  # [n, 1 + k]
            twice = ids == targets[:, None]
            twice[:, 0] = False  # the target is class 0, and no class again where the teacher has it among the k
            teacher, targets = _classes(theirs, ids, twice), torch.zeros_like(targets)
            students = (_classes(stage, ids, twice) for stage in stages)
        losses = [
            (ofa_from_log_probs(student, teacher, targets, eps=self.eps, form=self.form) * known).sum()
            for student in students
        ]
        correct = (logits.student.argmax(-1) == logits.targets[:, None]).sum(0)
        return torch.stack(losses), correct


def _classes(logits: Tensor, ids: Tensor, twice: Tensor) -> Tensor:
    """Log-probabilities of `ids`, -inf for those marked `twice`, then of all other ids together: [n, 1 + k + 1].

    Args:
        logits: [n, V]; ids, twice: [n, 1 + k].
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    kept = wide.gather(1, ids).masked_fill(twice, -torch.inf)
    others = wide.scatter(1, ids, NOWHERE).logsumexp(-1, keepdim=True)
    return torch.log_softmax(torch.cat([kept, others], 1), -1)


def _rms(hidden: Tensor) -> Tensor:
    """Each state divided by its root mean square, [N, D], fp32 or wider."""
    wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    return functional.rms_norm(wide, wide.shape[-1:], eps=1e-6)
