"""Depth by a transformers model: Depth Anything, DPT, ZoeDepth, GLPN."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForDepthEstimation

from mmkd.synthesis.programs.backends.pretrained import pretrained

INVERSE = ("dpt", "depth_anything", "prompt_depth_anything")  # they give nearness, unless trained on metric depth


class DepthModel:
    """Args:
        model: folder or hub id, e.g. depth-anything/Depth-Anything-V2-Small-hf.

    Raises: ConfigError where there is no such model, or it is of another kind. No code of a model's own is run.
    """

    def __init__(self, model: str, device: str = "cpu"):
        self.processor, self.model = pretrained("depth", model, AutoImageProcessor, AutoModelForDepthEstimation, device)
        config = self.model.config
        relative = getattr(config, "depth_estimation_type", "relative") == "relative"
        self.inverse = config.model_type in INVERSE and relative

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> np.ndarray:
        """Distance from the viewer [H, W], larger is farther: in metres of a metric model, else without a unit."""
        inputs = self.processor(images=image, return_tensors="pt").to(self.model.device)
        predicted = self.model(**inputs).predicted_depth  # [1, h, w]
        scaled = torch.nn.functional.interpolate(
            predicted[:, None].float(), size=(image.height, image.width), mode="bicubic", align_corners=False
        )[0, 0]
        return (scaled.max() - scaled if self.inverse else scaled).cpu().numpy()
