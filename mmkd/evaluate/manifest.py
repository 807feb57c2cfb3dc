"""What mmkd adds to lmms-eval: the model `mmkd`, found through the entry point group `lmms_eval.models`.

lmms-eval calls this whenever it is imported, so nothing heavy is imported here.
"""

from __future__ import annotations

from lmms_eval.models.registry_v2 import ModelManifest


def manifests() -> list[ModelManifest]:
    return [ModelManifest(model_id="mmkd", chat_class_path="mmkd.evaluate.lmms_model.MmkdLmms")]
