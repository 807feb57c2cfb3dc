"""What looking costs with a detector that is a model, where its weights cannot be had: the time of a forward pass does
not depend on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from transformers import CLIPTokenizerFast, Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

from mmkd.synthesis.programs.backends.base import Backends, Detection, Detector
from mmkd.synthesis.programs.backends.detection import ZeroShotDetector

OWLV2 = "OWLv2 base, random"


def owlv2(folder: Path) -> ZeroShotDetector:
    """OWLv2 base with patches of 16 at 960 pixels (arXiv 2306.09683; 155 M parameters), as initialised.

    Its tokenizer knows letters only: the text tower reads 16 tokens, whatever the words.
    """
    letters = [chr(number) + end for end in ("", "</w>") for number in range(ord("a"), ord("z") + 1)]
    vocabulary = {token: number for number, token in enumerate(["!", "<|startoftext|>", "<|endoftext|>", *letters])}
    tokenizer = CLIPTokenizerFast(vocab=vocabulary, merges=[], pad_token="!", unk_token="!", model_max_length=16)
    torch.manual_seed(0)
    Owlv2ForObjectDetection(Owlv2Config(vision_config={"image_size": 960})).save_pretrained(folder)
    Owlv2Processor(Owlv2ImageProcessor(size={"height": 960, "width": 960}), tokenizer).save_pretrained(folder)
    return ZeroShotDetector(str(folder))


class AlsoLooks:
    """Answers as one detector, and takes the time of another as well."""

    def __init__(self, answers: Detector, costs: Detector):
        self.answers, self.costs = answers, costs

    def detect(self, image: Image.Image, name: str) -> list[Detection]:
        self.costs.detect(image, name)
        return self.answers.detect(image, name)


def costing(backends: Backends, detector: Detector) -> Backends:
    """Back ends that answer as before, at the time of `detector`."""
    return replace(backends, detect=AlsoLooks(backends.detect, detector))
