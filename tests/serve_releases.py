"""`transformers serve` for releases of mmkd: `python serve_releases.py serve FOLDER ..`.

The command takes a model's class from transformers by its name, and tells what a class reads from a table there, so
that --trust-remote-code alone is not enough: here both know mmkd's.
"""

import sys

from transformers.models.auto import modeling_auto

from mmkd.models import MmkdConfig, MmkdForConditionalGeneration

NAME = MmkdForConditionalGeneration.__name__
setattr(sys.modules["transformers"], NAME, MmkdForConditionalGeneration)
modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[MmkdConfig.model_type] = NAME

from transformers.cli.transformers import main  # noqa: E402  (it looks at both)

if __name__ == "__main__":
    main()
