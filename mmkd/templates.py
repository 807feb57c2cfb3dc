"""Chat templates that put every image behind the first token and before the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmkd.errors import ConfigError

# Sink, one placeholder for each image of the chat, then `messages` reduced to role and text.
_HEAD = (
    "{{ bos_token }}"
    "{%- set flat = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{%- set text = message['content'] -%}"
    "{%- else -%}{%- set parts = namespace(text='') -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}{%- set parts.text = parts.text + part['text'] -%}"
    "{%- elif part['type'] in ['image', 'image_url'] -%}{{ '<image>' }}{%- endif -%}"
    "{%- endfor -%}{%- set text = parts.text -%}{%- endif -%}"
    "{%- set flat.messages = flat.messages + [{'role': message['role'], 'content': text}] -%}"
    "{%- endfor -%}"
)

_BODIES = {
    # The question, the answer, an end token: the fewest tokens, for short answers.
    "plain": (
        "{%- for message in flat.messages -%}"
        "{%- if message['role'] == 'assistant' -%}{{ ' ' + message['content'] + eos_token }}"
        "{%- elif message['role'] == 'system' -%}{{ message['content'] + '\n' }}"
        "{%- else -%}{{ message['content'] }}{%- endif -%}"
        "{%- endfor -%}"
    ),
    # Short question/answer turns.
    "qa": (
        "{%- for message in flat.messages -%}"
        "{%- if message['role'] == 'assistant' -%}{{ ' ' + message['content'] + eos_token + '\n' }}"
        "{%- elif message['role'] == 'system' -%}{{ message['content'] + '\n' }}"
        "{%- else -%}{{ 'Q: ' + message['content'] + '\nA:' }}{%- endif -%}"
        "{%- endfor -%}"
    ),
    "chatml": (
        "{%- for message in flat.messages -%}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
    ),
}


def chat_template(name: str, tokenizer: Any) -> str:
    """The template called `name`: plain, qa, chatml, default (the tokenizer's own, behind the images), or a jinja file.

    Raises: ConfigError for an unknown name or a tokenizer without a template.
    """
    if name in _BODIES:
        return _HEAD + _BODIES[name]
    if name == "default":
        if not tokenizer.chat_template:
            raise ConfigError("student.template is default, but this tokenizer has no chat template; use qa or chatml.")
        try:
            own = tokenizer.get_chat_template()  # of several the one called default
        except ValueError as error:
            raise ConfigError(f"student.template is default, but {error}") from error
        # Short answers, not thoughts: templates that can do both (Qwen3) would write empty thoughts into each label.
        given = "{%- set messages = flat.messages -%}{%- set bos_token = '' -%}{%- set enable_thinking = false -%}"
        return _HEAD + given + own
    path = Path(name)
    if path.suffix == ".jinja" and path.is_file():
        return path.read_text()
    raise ConfigError(
        f"student.template {name!r} is neither default, {', '.join(_BODIES)}, nor a .jinja file that exists."
    )
