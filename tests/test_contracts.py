"""Model sources as they are written."""

from __future__ import annotations

import pytest

from mmkd.contracts import Spec


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf:org/model", ("hf", "org/model", None)),
        ("hf:org/model@v1.0", ("hf", "org/model", "v1.0")),
        ("hf:org/model@refs/pr/3", ("hf", "org/model", "refs/pr/3")),
        ("hf:nowhere/me@corp/model", ("hf", "nowhere/me", "corp/model")),
    ],
)
def test_what_follows_the_at_is_the_revision(text, parts):
    spec = Spec.parse(text)
    assert (spec.source, spec.name, spec.revision) == parts
    assert str(spec) == text


@pytest.mark.parametrize("source", ["hf:", "gguf:", "timm:local-dir:"])
def test_an_at_in_the_path_of_a_folder_that_is_there_is_part_of_its_name(source, tmp_path):
    folder = tmp_path / "me@corp" / "model"
    folder.mkdir(parents=True)
    spec = Spec.parse(f"{source}{folder}")
    assert (str(spec), spec.revision) == (f"{source}{folder}", None)
