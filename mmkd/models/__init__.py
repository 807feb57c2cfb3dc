"""The model, registered with transformers' Auto classes."""

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from .configuration_mmkd import MmkdConfig
from .modeling_mmkd import MmkdForConditionalGeneration
from .processing_mmkd import MmkdProcessor
from .voco_cache import VocoCache

AutoConfig.register("mmkd", MmkdConfig, exist_ok=True)
AutoModelForImageTextToText.register(MmkdConfig, MmkdForConditionalGeneration, exist_ok=True)
AutoProcessor.register(MmkdConfig, MmkdProcessor, exist_ok=True)

__all__ = ["MmkdConfig", "MmkdForConditionalGeneration", "MmkdProcessor", "VocoCache"]
