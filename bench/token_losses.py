"""What the loss of distillation costs: `python -m bench.token_losses memory` and `... time`.

`memory` runs forward and backward of cross_entropy + forward_kl on random hidden states and heads, through mmkd's
chunks and as the formulas stand (whole logits on both sides), each in a process of its own. The figure is the most
memory the process held meanwhile beyond what it held before, that is beyond weights and hidden states: gradients count.
On a CPU it is the kernel's own account (VmHWM, set back before the step, less VmRSS), which sees the workspaces of
matrix products too; torch counts nothing there, and getrusage inherits the peak of the process that started this one.
Blocks from 1 MiB go back to the system when freed, as those of real sizes (from 32 MiB) always do, so that it is memory
in use that counts and not how the allocator cut the rest. On a GPU it is the caching allocator's count.

`time` runs forward_kl and cross_entropy alone, both chunked and of one width, in turn in one process; and cross_entropy
whose chunks are computed again in backward, as chunked losses do it that make no gradients ahead.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.rows import RESULTS, ROOT, Row, append, config_hash, surroundings
from mmkd.errors import DataError
from mmkd.objectives import AnswerBatch, CrossEntropy, ForwardKL, Outputs, TokenLoss, token_losses

VOCABULARIES = [49_152, 151_936]  # SmolLM2, Qwen2.5
TOKENS = [1024, 2048, 4096, 8192]
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Case:
    """One measurement: so many answer tokens and ids, in chunks of `chunk` tokens, or 0 for whole logits.

    The widths are those of SmolLM2 135M and 360M.
    """

    tokens: int
    vocabulary: int
    chunk: int
    width: int = 576
    teacher_width: int = 960
    dtype: str = "float32"
    device: str = "cpu"


@dataclass
class Sides:
    """Hidden states and heads of a case, [N, D] and D -> V, and the targets [N]."""

    student: Tensor
    head: nn.Linear
    teacher: Tensor
    teacher_head: nn.Linear
    targets: Tensor


def sides(case: Case) -> Sides:
    torch.manual_seed(0)
    dtype, device = getattr(torch, case.dtype), case.device
    hidden, heads = [], []
    for width in (case.width, case.teacher_width):
        hidden.append(torch.empty(case.tokens, width, dtype=dtype, device=device).normal_())
        heads.append(nn.Linear(width, case.vocabulary, bias=False, dtype=dtype, device=device))
    heads[1].requires_grad_(False)
    targets = torch.randint(case.vocabulary, (case.tokens,), device=device)
    return Sides(hidden[0].requires_grad_(), heads[0], hidden[1], heads[1], targets)


def chunked(at: Sides, objectives: Sequence[TokenLoss], ahead: bool = True) -> Tensor:
    """Loss by mmkd's objectives, each of weight 1; `ahead`: gradients are made beside the loss."""
    zeros = torch.zeros_like(at.targets)
    one = zeros.new_ones(1, 1)
    batch = AnswerBatch(at.targets, zeros, zeros, one.bool(), one * 0, len(zeros))
    student, teacher = (
        Outputs(hidden, head, {}, one.bool(), one.bool(), one, head_weight=head.weight if ahead else None)
        for hidden, head in ((at.student, at.head), (at.teacher, at.teacher_head))
    )
    return token_losses([(objective, 1.0) for objective in objectives], student, teacher, batch).loss


def naive(at: Sides) -> Tensor:
    """The same loss from whole logits, softmax in fp32."""
    logits = at.head(at.student)  # [N, V]
    log_q = torch.log_softmax(logits, -1, dtype=torch.float32)
    with torch.no_grad():
        log_p = torch.log_softmax(at.teacher_head(at.teacher), -1, dtype=torch.float32)
    kl = nn.functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    return kl + nn.functional.nll_loss(log_q, at.targets)


def step_bytes(case: Case) -> int:
    """Most memory that forward and backward of a case hold at once, weights and hidden states not counted."""

    def step(of: Case) -> Callable[[], None]:
        at = sides(of)
        objectives = [CrossEntropy(of.chunk), ForwardKL(chunk=of.chunk)] if of.chunk else []
        return lambda: (chunked(at, objectives) if objectives else naive(at)).backward()

    step(Case(8, 64, case.chunk, 16, 16, case.dtype, case.device))()  # loads what is loaded once
    return peak_bytes(step(case), case.device)


def peak_bytes(work: Callable[[], Any], device: str) -> int:
    """Most memory that `work` holds at once beyond what is held before it. Raises DataError where nobody counts it."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    if not STATUS.exists():
        raise DataError("memory on a CPU is read from /proc, which Linux alone has; use --device cuda.")
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
    before = status_bytes("VmRSS")
    work()
    return status_bytes("VmHWM") - before


def status_bytes(name: str) -> int:
    """A figure that the kernel keeps of this process, as VmRSS: memory held now. Linux only."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise DataError(f"{STATUS} has no {name}; use --device cuda.")
    return int(found[1]) * 1024


def in_a_process(case: Case) -> int:
    """`step_bytes` of a fresh process."""
    command = [sys.executable, "-m", "bench.token_losses", "one", json.dumps(asdict(case))]
    around = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=around)
    if done.returncode:
        raise DataError(f"{case}: the process ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return int(done.stdout)


# metric, value, unit, spread, against
Figure = tuple[str, float, str, float | None, str | None]


def memory_figures(base: Case, vocabularies: Sequence[int], tokens: Sequence[int], limit: float) -> Iterator[Figure]:
    """MiB by chunks and by whole logits, as they come in; the latter only where it will fit into `limit` GB.

    `share_at_most` compares with the largest of the naive runs of no more tokens. Naive memory grows with the tokens,
    so where that run had fewer, the true share is smaller.
    """
    for vocabulary in vocabularies:
        largest: tuple[int, int] | None = None  # tokens and bytes of a naive run
        for count in sorted(tokens):
            name = f"V={vocabulary:,} N={count:,}"
            at = replace(base, tokens=count, vocabulary=vocabulary)
            ours = in_a_process(at)
            yield f"chunked@{name}", ours / 2**20, "MiB", None, None
            expected = largest[1] * count / largest[0] if largest else 5 * 4 * count * vocabulary
            if expected <= limit * 1e9:
                largest = count, in_a_process(replace(at, chunk=0))
                yield f"naive@{name}", largest[1] / 2**20, "MiB", None, None
            if largest:
                yield f"share_at_most@{name}", ours / largest[1], "of naive", None, f"naive, {largest[0]:,} tokens"


def time_figures(base: Case, vocabularies: Sequence[int], rounds: int) -> Iterator[Figure]:
    """Milliseconds of forward and backward, and their ratio in each round; the teacher is as wide as the student."""
    cross_entropy = CrossEntropy(base.chunk)
    cases: dict[str, tuple[TokenLoss, bool]] = {
        "cross_entropy": (cross_entropy, True),
        "recomputed_cross_entropy": (cross_entropy, False),
        "forward_kl": (ForwardKL(chunk=base.chunk), True),
    }
    for vocabulary in vocabularies:
        at = sides(replace(base, vocabulary=vocabulary, teacher_width=base.width))
        runs: dict[str, list[float]] = {name: [] for name in cases}
        for number in range(rounds + 1):
            for name, (objective, ahead) in cases.items():
                spent = _seconds(
                    lambda o=objective, at=at, ahead=ahead: chunked(at, [o], ahead).backward(), base.device
                )
                if number:  # the first warms up
                    runs[name].append(1000 * spent)
        case = f"V={vocabulary:,} N={base.tokens:,}"
        for name, values in runs.items():
            yield f"{name}@{case}", statistics.median(values), "ms", _spread(values), None
        for name, metric in (("cross_entropy", "ratio"), ("recomputed_cross_entropy", "ratio_to_recomputed")):
            ratios = [kl / ce for kl, ce in zip(runs["forward_kl"], runs[name], strict=True)]
            against = f"chunked {name}, same run"
            yield f"{metric}@{case}", statistics.median(ratios), f"of {name}", _spread(ratios), against


def _spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _seconds(work: Callable[[], Any], device: str) -> float:
    started = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main(arguments: list[str], results: Path = RESULTS) -> None:
    if arguments[:1] == ["one"]:
        print(step_bytes(Case(**json.loads(arguments[1]))))
        return
    parser = argparse.ArgumentParser(prog="python -m bench.token_losses", description=__doc__.split("\n\n")[0])
    parser.add_argument("job", choices=["memory", "time"])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=VOCABULARIES)
    parser.add_argument("--tokens", type=int, nargs="+", default=None, help="memory: 1k to 8k by default; time: 2048")
    parser.add_argument("--chunk", type=int, default=512, help="answer tokens of a chunk")
    parser.add_argument("--width", type=int, default=Case.width, help="of the student's hidden states")
    parser.add_argument("--teacher-width", type=int, default=Case.teacher_width, help="memory only")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default=Case.dtype)
    parser.add_argument("--device", choices=["cpu", "cuda"], default=Case.device)
    parser.add_argument("--limit", type=float, default=8.0, help="memory: GB that whole logits may take")
    parser.add_argument("--rounds", type=int, default=10, help="time: rounds, each running both losses once")
    asked = parser.parse_args(arguments)
    around = surroundings()  # before anything is measured: the commit that runs
    tokens = asked.tokens or (TOKENS if asked.job == "memory" else [2048])
    base = Case(tokens[0], 0, asked.chunk, asked.width, asked.teacher_width, asked.dtype, asked.device)
    if asked.job == "memory":
        figures = memory_figures(base, asked.vocabularies, tokens, asked.limit)
    else:
        figures = time_figures(base, asked.vocabularies, asked.rounds)
    for metric, value, unit, spread, against in figures:
        row = Row(
            bench=f"token_loss_{asked.job}",
            metric=metric,
            value=value,
            unit=unit,
            seeds=(0,),
            spread=spread,
            against=against,
            command=" ".join(["python -m bench.token_losses", *arguments]),
            config_hash=config_hash(asdict(base)),
            **around,
        )
        append([row], results)
        print(f"{metric:<36} {value:>12,.4g} {unit}" + (f" ± {spread:.2g}" if spread else ""), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
