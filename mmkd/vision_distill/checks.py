"""What a config of `kind: vision` asks that cannot be, said before any model is loaded."""

from __future__ import annotations

from mmkd.config.vision_schema import VisionConfig
from mmkd.errors import ConfigError
from mmkd.vision_distill.augment import check_rand_augment
from mmkd.vision_distill.methods import METHODS, OFA, Method, build_method
from mmkd.vision_distill.sources import LabelledImages, check_images
from mmkd.vision_distill.space_ofa import require_in_space, require_no_target
from mmkd.vision_distill.spaces import SPACES, check_space, contrastive_spec

LOGIT_METHODS = ("ofa", "kd", "dkd", "dist")  # which teach the student's classifier where the space is its classes


def check_vision(config: VisionConfig) -> None:
    """Refuse sources that there are not, options that no source or method takes, methods without their teacher or in a
    space where they say nothing, a label that counts twice or not at all, and a classifier that is scored and never
    taught.

    Raises: ConfigError.
    """
    for name, section in (("data.train", config.data.train), ("data.test", config.data.test)):
        if section is not None:
            check_images(section, at=name, config=config)
    check_rand_augment(config)
    options = check_space(config.space, config)
    methods = {}
    for i, section in enumerate(config.objectives):
        if section.name in methods:
            raise ConfigError(f"config: objectives[{i}] names {section.name} again; name it once, with more weight.")
        methods[section.name] = build_method(section.name, section.options(), f"objectives[{i}]", config)
    asking = [name for name, method in methods.items() if method.teacher]
    if asking and config.teacher is None:
        raise ConfigError(f"config: objectives {', '.join(asking)} need a teacher, and the config has none; add one.")
    if config.space.kind != "labels":
        for i, section in enumerate(config.objectives):
            require_in_space(section.name, f"objectives[{i}]")
        if config.teacher is not None and config.space.kind in ("contrastive", "prompts"):
            contrastive_spec(config.teacher, config.space.kind)
        targeted = SPACES[config.space.kind].targeted and options.get("bank") is None
        if not targeted and isinstance(ofa := methods.get("ofa"), OFA):
            require_no_target(ofa)
    _check_labels(config, methods)


def _check_labels(config: VisionConfig, methods: dict[str, Method]) -> None:
    ofa, labelled = methods.get("ofa"), "cross_entropy" in methods
    if isinstance(ofa, OFA) and config.space.kind == "labels":
        if ofa.form == "paper" and labelled:
            raise ConfigError(
                "config: ofa in the form paper holds the labels' cross-entropy, and cross_entropy counts it again. "
                "Take cross_entropy out, or write form: released."
            )
        if ofa.form == "released" and not labelled:
            raise ConfigError(
                "config: ofa in the form released holds no cross-entropy of the labels; put cross_entropy beside it, "
                "or write form: paper, which holds it."
            )
    taught = labelled or (config.space.kind == "labels" and not methods.keys().isdisjoint(LOGIT_METHODS))
    if config.data.test is not None and not taught:
        raise ConfigError(
            f"config: {', '.join(methods)} teach the student's features and not its classifier, which data.test would "
            "score as it was drawn; add cross_entropy, or leave data.test out where features are all that is wanted."
        )


def check_micro_batch(config: VisionConfig, size: int) -> None:
    """Raises ConfigError where a method compares more images than a micro batch of `size` has: it would say nothing."""
    for i, section in enumerate(config.objectives):
        least = METHODS[section.name].least
        if size < least:
            raise ConfigError(
                f"config: objectives[{i}] {section.name} compares {least} images of a micro batch with each other, and "
                f"here that is {size}: raise recipe.micro_batch_size, or recipe.batch_size for as many ranks."
            )


def check_test(train: LabelledImages, test: LabelledImages) -> None:
    """Raises ConfigError where the two sets have other classes, before hours of training that could not be scored."""
    missing = [name for name in train.classes if name not in test.classes]
    extra = [name for name in test.classes if name not in train.classes]
    if train.classes != test.classes:
        found = [f"{what} {', '.join(names[:5])}" for what, names in (("lacks", missing), ("also has", extra)) if names]
        raise ConfigError(
            f"config: data.test has not data.train's classes: it {' and '.join(found) or 'has another order'}. "
            "Scores compare class by class: give both the same (an empty folder counts), or leave data.test out."
        )
