"""What this machine has for mmkd, what it lacks, and the line that installs it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from mmkd import assets
from mmkd.contracts import GROUPS, adapters
from mmkd.precision import native_bf16

GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One row. `essential` and not `ok` makes `mmkd doctor` fail; `remedy` is a line to type or a thing to do."""

    part: str
    ok: bool
    found: str
    remedy: str = ""
    essential: bool = False


def doctor(console: Console | None = None) -> int:
    """Print the table; 0, or 1 if something essential is missing."""
    console = console or Console()
    findings = list(examine())
    table = Table("part", "", "found", "to do", box=None, pad_edge=False)
    for finding in findings:
        mark = "[green]ok[/]" if finding.ok else "[red]missing[/]" if finding.essential else "[yellow]lacks[/]"
        table.add_row(finding.part, mark, _plain(finding.found), "" if finding.ok else _plain(finding.remedy))
    console.print(table)
    missing = [finding.part for finding in findings if finding.essential and not finding.ok]
    if missing:
        console.print(f"mmkd cannot run without: {', '.join(missing)}.")
    return 1 if missing else 0


def examine() -> Iterable[Finding]:
    """Every finding, in the order of the table."""
    checks: list[Callable[[], Iterable[Finding]]] = [
        _python, _torch, _libraries, _deepspeed, _bitsandbytes, _adapters, _assets, _machine,
    ]  # fmt: skip
    for check in checks:
        yield from check()


def _python() -> Iterable[Finding]:
    ok = sys.version_info >= (3, 11)
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding("python", ok, found, "install Python 3.11 or later", essential=True)


def _torch() -> Iterable[Finding]:
    if not _installed("torch"):
        yield _package("torch", "torch", "pip install torch torchvision", essential=True)
        return
    import torch

    yield Finding("torch", True, torch.__version__, essential=True)
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        gib = torch.cuda.get_device_properties(0).total_memory / GIB
        yield Finding("device", True, f"{len(names)} x {names[0]}, {gib:.0f} GiB")
        yield Finding("bf16", native_bf16(cpu=False), "on the GPU", "training.precision: auto takes fp32")
    else:
        yield Finding("device", True, f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads; no CUDA GPU")
        native = native_bf16(cpu=True)
        yield Finding("bf16", True, "native" if native else "emulated, slow: training.precision: auto takes fp32")


def _libraries() -> Iterable[Finding]:
    yield _package("transformers", "transformers", "pip install -e .", essential=True)
    yield _package("timm", "timm", "pip install -e .", essential=True)
    yield _package("accelerate", "accelerate", "pip install -e '.[train]'")
    yield _package("peft", "peft", "pip install -e '.[train]'")
    yield _package("lmms-eval", "lmms_eval", "pip install -e '.[eval]'")
    yield _package("datasets", "datasets", "pip install -e '.[data]'")


def _deepspeed() -> Iterable[Finding]:
    package = _package("deepspeed", "deepspeed", "pip install -e '.[train]'")
    yield package
    if not package.ok:
        return
    # mmkd itself runs without compiled ops: they are for DeepSpeed's own optimisers and for offload.
    compiler = shutil.which("g++") or shutil.which("c++")
    ninja = shutil.which("ninja") or _installed("ninja")
    nvcc = shutil.which("nvcc")
    yield Finding("g++", bool(compiler), compiler or "not found", "apt-get install g++")
    yield Finding("ninja", bool(ninja), "found" if ninja else "not found", "pip install ninja")
    cuda = _cuda_wanted()
    yield Finding("nvcc", bool(nvcc) or not cuda, nvcc or "not found", "install the CUDA toolkit of torch's version")
    ready = bool(compiler and ninja)
    found = _ops() if ready else "none can be built"
    yield Finding("deepspeed ops", ready, found, "see g++ and ninja above; torch's AdamW needs neither")


def _ops() -> str:
    """What DeepSpeed itself says of its compiled ops on this device."""
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # it compiles one function at import: seconds for nothing
    if not _cuda_wanted():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # it warns where it has to find that out
    from deepspeed.ops.op_builder.all_ops import ALL_OPS

    by_answer: dict[bool, list[str]] = {True: [], False: []}
    for name, builder in ALL_OPS.items():
        if name != "deepspeed_not_implemented":  # what stands for ops that a device has none of
            by_answer[bool(builder.is_compatible(verbose=False))].append(name)
    lacking = f"; not {', '.join(by_answer[False])}" if by_answer[False] else ""
    return f"can build {', '.join(by_answer[True])}{lacking}"


def _bitsandbytes() -> Iterable[Finding]:
    package = _package("bitsandbytes", "bitsandbytes", "pip install -e '.[quant]'")
    if not package.ok:
        yield package
        return
    back_end = "CUDA" if _cuda_wanted() else "CPU (int8, NF4 and FP4 work, slowly)"
    yield Finding("bitsandbytes", True, f"{package.found}, {back_end}")


def _adapters() -> Iterable[Finding]:
    for kind in GROUPS:
        points = adapters(kind)
        broken = [
            name for name, point in points.items() if importlib.util.find_spec(point.module.split(".")[0]) is None
        ]
        working = sorted(set(points) - set(broken))
        found = ", ".join(working) + (f"; cannot be imported: {', '.join(broken)}" if broken else "")
        yield Finding(
            f"{kind} adapters", bool(working) and not broken, found or "none", "pip install -e .", essential=True
        )


def _assets() -> Iterable[Finding]:
    absent = [name for name, asset in assets.ASSETS.items() if not assets.is_present(asset)]
    found = f"{len(assets.ASSETS) - len(absent)} of {len(assets.ASSETS)} in {assets.cache()}"
    yield Finding("demo assets", not absent, found, "mmkd assets")


def _machine() -> Iterable[Finding]:
    memory = psutil.virtual_memory()
    found = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    yield Finding("memory", memory.available > 4 * GIB, found, "the demo needs about 4 GiB: close other programs")
    free = shutil.disk_usage(Path.cwd()).free / GIB
    yield Finding(
        "disk", free > 5, f"{free:.1f} GiB free here", "the demo needs about 5 GiB: free some, or run elsewhere"
    )
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    yield Finding(
        "browser", bool(browser), browser or "not found", "apt-get install chromium (only for the report's test)"
    )


def _package(part: str, module: str, remedy: str, essential: bool = False) -> Finding:
    try:
        return Finding(part, _installed(module), version(part), remedy, essential)
    except PackageNotFoundError:
        return Finding(part, False, "not installed", remedy, essential)


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _cuda_wanted() -> bool:
    import torch

    return torch.cuda.is_available()


def _plain(text: str) -> str:
    return text.replace("[", r"\[")  # rich would read .[train] as a style
