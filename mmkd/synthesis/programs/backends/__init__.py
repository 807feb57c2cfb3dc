"""What tools see with: classical (exact on our own scenes), transformers models, a VLM, OCR."""

from mmkd.synthesis.programs.backends.base import Asker, Backends, Detection, Detector

__all__ = ["Asker", "Backends", "Detection", "Detector"]
