"""What docs/evolve.md says works."""

from __future__ import annotations

import re

from mmkd.config.evolve_schema import EvolveConfig
from mmkd.config.load import load_as
from mmkd.synthesis.evolving.grounded.forms import FORMS


def test_the_config_of_the_page_is_a_config_and_every_option_is_named(root, tmp_path):
    page = (root / "docs" / "evolve.md").read_text()
    (text,) = re.findall(r"```yaml\n(# evolve\.yaml\n.*?)```", page, re.DOTALL)
    (tmp_path / "evolve.yaml").write_text(text)
    config = load_as(tmp_path / "evolve.yaml", [], EvolveConfig)
    assert config.judge.model.endpoint.model != config.evolver.model.endpoint.model
    assert all(f"`{name}`" in page or f"{name}:" in text for name in EvolveConfig.model_fields if name != "reasks")
    assert all(form in page for form in FORMS)


def test_the_packaged_config_with_endpoints_says_of_the_same_options_what_differs():
    embedded, real = (load_as(name, [], EvolveConfig) for name in ("evolve/scenes", "real/evolve"))
    assert real.evolver.model.endpoint.model != real.judge.model.endpoint.model
    assert real.rounds == embedded.rounds == 3
    assert (real.directions, real.versions, real.chain) == (embedded.directions, embedded.versions, embedded.chain)


def test_the_packaged_config_asks_no_endpoint():
    config = load_as("evolve/scenes", [], EvolveConfig)
    assert config.evolver.model is None
    assert config.blind.model.endpoint is None
