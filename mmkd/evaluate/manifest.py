"""What lmms-eval finds through its entry point: the model, and mmkd's suites."""

from __future__ import annotations

from typing import Any

from lmms_eval.models.registry_v2 import ModelManifest

from mmkd.config.load import packaged


def manifests() -> list[ModelManifest]:
    """Called by lmms-eval when it starts, under the entry point `lmms_eval.models`."""
    add_suites()
    return [ModelManifest(model_id="mmkd", chat_class_path="mmkd.evaluate.lmms_model.MmkdLmms")]


def add_suites() -> None:
    """Let `--tasks easyvqa` find eval_suites/. lmms-eval 0.7.3 has an entry point for models and none for tasks, so its
    task index is widened where it is built; whoever asks for it without lmms-eval's own tasks gets it as before."""
    from lmms_eval.tasks import TaskManager

    plain = TaskManager.initialize_tasks

    def initialize_tasks(self: Any, include_path: Any = None, include_defaults: bool = True) -> dict[str, Any]:
        paths = [include_path] if isinstance(include_path, str) else list(include_path or [])
        return plain(self, [*paths, str(packaged("eval_suites"))] if include_defaults else paths, include_defaults)

    TaskManager.initialize_tasks = initialize_tasks
