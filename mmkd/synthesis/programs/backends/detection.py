"""Zero-shot detection by a transformers model: OWL-ViT, OWLv2, Grounding DINO, and what shares their processors."""

from __future__ import annotations

import torch
from PIL import Image
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from mmkd.synthesis.programs.backends.base import Detection
from mmkd.synthesis.programs.backends.pretrained import pretrained
from mmkd.synthesis.programs.backends.remembered import Remembered


class ZeroShotDetector:
    """Args:
        model: folder or hub id, e.g. google/owlv2-base-patch16-ensemble or IDEA-Research/grounding-dino-tiny.
        threshold: detections with a lower score are dropped.
        remember: results kept, so that programs that look for the same thing in one picture cost one look.

    Raises: ConfigError where there is no such model, or it is of another kind. No code of a model's own is run.
    """

    def __init__(self, model: str, threshold: float = 0.25, device: str = "cpu", remember: int = 1024):
        self.threshold = threshold
        self._found = Remembered(self._look, remember)
        self.processor, self.model = pretrained(
            "zero-shot detection", model, AutoProcessor, AutoModelForZeroShotObjectDetection, device
        )

    def detect(self, image: Image.Image, name: str) -> list[Detection]:
        """What matches the name, in reading order; its label is the name, since such a model knows no other."""
        return list(self._found(image, name.strip().lower().rstrip(".")))

    @torch.inference_mode()
    def _look(self, image: Image.Image, label: str) -> list[Detection]:
        inputs = self.processor(images=image, text=[[label]], return_tensors="pt").to(self.model.device)
        outputs = self.model(**inputs)
        # Grounding DINO's text tokens are needed to tell which words a box belongs to; here there is one phrase only.
        extra = {"input_ids": inputs["input_ids"]} if "grounding" in self.model.config.model_type else {}
        found = self.processor.post_process_grounded_object_detection(
            outputs, threshold=self.threshold, target_sizes=[(image.height, image.width)], **extra
        )[0]
        detections = []
        for score, box in zip(found["scores"].tolist(), found["boxes"].tolist()):
            left, top, right, bottom = (round(value) for value in box)
            # Boxes may reach over the image's edge; one that lies outside, or is empty, is nothing.
            left, top, right, bottom = max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)
            if left < right and top < bottom:
                detections.append(Detection(label, (left, top, right, bottom), score))
        return sorted(detections, key=lambda one: (one.box[1], one.box[0]))
