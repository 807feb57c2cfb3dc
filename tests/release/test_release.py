"""Releases with code of their own: what is in them, what is not, and that they stand without mmkd."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from mmkd.checkpoints import mark_complete
from mmkd.errors import ReleaseError
from mmkd.evaluate.loading import load as load_to_score
from mmkd.models import MmkdConfig, MmkdForConditionalGeneration
from mmkd.release import clean_process
from mmkd.release.bundle import load_student, release
from mmkd.release.verify import compare, expect, verify


@pytest.fixture(scope="module")
def released(voco_run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("releases") / "tiny-voco"
    release(voco_run, out)
    return out


def test_a_release_says_the_same_as_the_trained_model_where_mmkd_cannot_be_imported(released):
    record = json.loads((released / "verification.json").read_text())
    assert record["blocked"] == {"mmkd": True, "mmkd_adapters": True}
    assert record["model_class"].startswith("transformers_modules.")
    assert record["processor_class"].startswith("transformers_modules.")
    assert sorted(record["logits"]) == ["1", "4", "full"]
    assert all(reading["difference"] <= reading["allowed"] < 1e-3 for reading in record["logits"].values())
    answers = record["answers"]
    assert answers["1/0"] == answers["1/0/compressed"]
    assert len(set(answers.values())) > 3
    assert record["identity"]["most_tokens"] == "4"


def test_a_release_holds_the_students_tensors_and_nothing_else(released, voco_run):
    weights = load_file(released / "model.safetensors")
    with torch.device("meta"):
        model = MmkdForConditionalGeneration(MmkdConfig.from_pretrained(voco_run / "model"))
    assert {name: t.shape for name, t in weights.items()} == {n: t.shape for n, t in model.state_dict().items()}
    trained = load_file(voco_run / "model" / "model.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in trained.items())
    files = {path.name for path in released.iterdir()}
    assert {name for name in files if not name.endswith(".py")} == {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "processor_config.json", "tokenizer.json", "tokenizer_config.json", "verification.json",
    }  # fmt: skip
    payload = sum(tensor.nbytes for tensor in weights.values())
    assert sum((released / name).stat().st_size for name in files if name.endswith(".safetensors")) < payload + 100_000


def test_a_release_names_no_place_of_this_machine(released, tmp_path_factory):
    for path in released.iterdir():
        if path.suffix != ".safetensors":
            text = path.read_text()
            assert str(tmp_path_factory.getbasetemp()) not in text, path.name
            assert str(Path.home()) not in text, path.name
        assert path.stat().st_mode & 0o777 == 0o644


def test_released_code_imports_its_siblings_and_public_packages_only(released):
    siblings = {path.stem for path in released.glob("*.py")}
    for path in released.glob("*.py"):
        imports = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        relative = {node.module for node in imports if isinstance(node, ast.ImportFrom) and node.level}
        absolute = {
            node.module.split(".")[0] for node in imports if isinstance(node, ast.ImportFrom) and not node.level
        }
        absolute |= {name.name.split(".")[0] for node in imports if isinstance(node, ast.Import) for name in node.names}
        assert relative <= siblings, path.name
        assert absolute <= sys.stdlib_module_names | {"torch", "transformers", "safetensors", "numpy", "PIL"}, path.name


def test_the_card_states_teacher_data_losses_scores_licences_and_limits(released):
    card = (released / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "transformers"
    assert head["license"] == "unknown"
    table = [line for line in card.splitlines() if line.startswith("|") and ("accuracy" in line or "1000" in line)]
    assert table == [
        "| image tokens k | accuracy | image tokens | questions |",
        "| 1 | 96.1 % | 4.0 | 1000 |",
        "| 4 | 97.5 % | 4.0 | 1000 |",
        "| full | 98.0 % | 4.0 | 1000 |",
        "| none (blind) | 67.0 % | 4.0 | 1000 |",
    ]
    for said in (
        "With lmms-eval 0.7.3.",
        "reads an image as 1 or 4 tokens instead of its 4 vision tokens",
        "teacher: the model itself with full vision (shared)",
        "data: easyvqa (split train)",
        "losses: cross_entropy x 1",
        "loss 0.2, ce 0.1",
        "| data | easyvqa | MIT |",
        "commit c0ffee",
        "Some scores are of the first questions",
    ):
        assert said in card, said


@pytest.mark.slow
def test_the_code_on_the_card_runs_as_it_stands_without_mmkd(released, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (released / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    assert len(blocks[0].splitlines()) == 4
    shutil.copytree(released, tmp_path / released.name)
    clean_process.pictures()[0].save(tmp_path / "cat.png")
    block = f"import runpy; runpy.run_path({clean_process.__file__!r})['block_imports']()\n"
    (tmp_path / "card.py").write_text(block + "".join(blocks))
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-I", "card.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 2


def test_the_installed_mmkd_scores_a_release_without_running_its_code(released):
    loaded = load_to_score(str(released), None, torch.device("cpu"), trust_remote_code=True)
    assert loaded.ours
    assert type(loaded.model) is MmkdForConditionalGeneration


@pytest.mark.slow
def test_bf16_stays_bf16(make_run, tmp_path):
    record = release(make_run(tmp_path / "run", voco=2, dtype=torch.bfloat16), tmp_path / "out")
    assert record["dtype"] == "bfloat16"
    dtypes = {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()}
    assert dtypes == {torch.bfloat16, torch.int64}  # position ids are whole numbers


def test_a_tokenizer_of_several_chat_templates_keeps_them_all(make_run, tmp_path):
    run = make_run(tmp_path / "run", voco=2)
    model = run / "model"
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tool_use.jinja").write_text("tools: {{ messages[0]['content'] }}")
    mark_complete(model)
    record = release(run, tmp_path / "out")
    written = tmp_path / "out" / "additional_chat_templates"
    assert "additional_chat_templates/tool_use.jinja" in record["files"]
    assert (written / "tool_use.jinja").read_text().startswith("tools: ")
    assert [path.stat().st_mode & 0o777 for path in (written, written / "tool_use.jinja")] == [0o755, 0o644]


# --- what fails, and what it leaves ----------------------------------------------------------------------------------


def test_a_model_that_cannot_verify_leaves_nothing_behind(make_run, tmp_path):
    def break_projector(model):
        with torch.no_grad():
            model.projector.linear_2.bias[0] = float("nan")

    run = make_run(tmp_path / "run", initial=break_projector)
    with pytest.raises(ReleaseError, match="logits differ from the model's by nan where images are read with full"):
        release(run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.fixture(scope="module")
def expected(voco_run):
    return expect(*load_student(voco_run / "model"))


def test_one_changed_weight_is_noticed(voco_run, expected):
    model, processor = load_student(voco_run / "model")
    with torch.no_grad():
        model.voco.embedding.weight[0, 0] += 0.01
    with pytest.raises(ReleaseError, match=r"the release's logits differ .* where images are read with 1 tokens"):
        compare(expected, *clean_process.ask(model, processor, expected.readings))


def test_another_normalisation_of_images_is_noticed(voco_run, expected):
    model, processor = load_student(voco_run / "model")
    processor.image_processor.image_mean = [0.4, 0.5, 0.5]
    with pytest.raises(ReleaseError, match="the release's processor makes other inputs than the model's own: pixels"):
        compare(expected, *clean_process.ask(model, processor, expected.readings))


def test_another_answer_on_the_same_logits_is_noticed(expected):
    answers = expected.facts["answers"] | {"1/0/compressed": "something else"}
    with pytest.raises(ReleaseError, match=r"the release's answers: .*something else"):
        compare(expected, expected.tensors, {**expected.facts, "answers": answers})


def test_code_that_needs_mmkd_is_noticed(released, tmp_path, expected):
    copy = Path(shutil.copytree(released, tmp_path / "copy"))
    module = copy / "modeling_mmkd.py"
    module.write_text(module.read_text().replace("from torch import Tensor", "import mmkd\nfrom torch import Tensor"))
    with pytest.raises(ReleaseError, match=r"does not work in a process without mmkd \(exit code 1\)") as raised:
        verify(copy, expected, remote_code=True)
    assert "mmkd" in str(raised.value).splitlines()[-1]


@pytest.mark.parametrize("name", ["teacher.model.layers.0.weight", "heads.projection.weight", "exp_avg"])
def test_weights_that_are_no_part_of_the_student_are_refused(make_run, mark_whole, tmp_path, name):
    run = make_run(tmp_path / "run", voco=2)
    path = run / "model" / "model.safetensors"
    save_file(load_file(path) | {name: torch.zeros(2, 2)}, path, metadata={"format": "pt"})
    mark_whole(run / "model")
    with pytest.raises(ReleaseError, match=f"1 tensors that are no part of the student \\({name}\\)"):
        release(run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_missing_weight_is_refused(make_run, mark_whole, tmp_path):
    run = make_run(tmp_path / "run", voco=2)
    path = run / "model" / "model.safetensors"
    weights = load_file(path)
    weights.pop("voco.embedding.weight")
    save_file(weights, path, metadata={"format": "pt"})
    mark_whole(run / "model")
    with pytest.raises(ReleaseError, match=r"lacks 1 that are \(voco.embedding.weight\)"):
        release(run, tmp_path / "out")


def test_a_folder_that_is_there_is_never_written_to(voco_run, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ReleaseError, match="exists; remove it, or name another folder with --out"):
        release(voco_run, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_an_unfinished_run_is_refused_with_the_command_that_finishes_it(make_run, tmp_path):
    run = make_run(tmp_path / "run")
    (run / "model" / "chat_template.jinja").write_text("cut")
    with pytest.raises(ReleaseError, match=r"chat_template.jinja is missing or has another size.*--resume"):
        release(run, tmp_path / "out")
    (run / "model" / "COMPLETE.json").unlink()
    with pytest.raises(ReleaseError, match=r"no COMPLETE.json.*--resume"):
        release(run, tmp_path / "out")


def test_a_model_given_instead_of_its_run_is_told_so(voco_run, tmp_path):
    with pytest.raises(ReleaseError, match="This is a model; give the run it came from"):
        release(voco_run / "model", tmp_path / "out")
    with pytest.raises(ReleaseError, match="is not a run folder"):
        release(tmp_path, tmp_path / "out")
