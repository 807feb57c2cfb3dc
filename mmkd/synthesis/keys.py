"""The keys that a config's endpoints need, looked for before a job begins."""

from __future__ import annotations

import os
from typing import Any

from pydantic import BaseModel

from mmkd.config.endpoint_schema import EndpointSection
from mmkd.errors import ConfigError


def require_keys(value: Any, at: str = "") -> None:
    """Every `api_key_env` in a section, or in a mapping or list of sections, is set.

    Args:
        at: key path of the value, for the message.

    Raises: ConfigError naming the first that is not.
    """
    if isinstance(value, EndpointSection) and (name := value.api_key_env) is not None and not os.environ.get(name):
        raise ConfigError(f"config: {at}.api_key_env names {name}, which is not set; export {name}=... before you run.")
    if isinstance(value, BaseModel):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, list):
        value = {f"[{place}]": one for place, one in enumerate(value)}
    if isinstance(value, dict):
        for name, one in value.items():
            require_keys(one, f"{at}{name}" if str(name).startswith("[") else f"{at}.{name}".lstrip("."))
