"""The exceptions a user may see. Each message names what was found, what is allowed, and what to do."""

from __future__ import annotations


class MmkdError(Exception):
    """Base of every error that is the user's to mend; the CLI prints its text without a traceback."""


class ConfigError(MmkdError):
    """A configuration that cannot run; raised before any weight is loaded."""


class AssetError(MmkdError):
    """A model or data file that is missing, broken or of another version than expected."""


class DataError(MmkdError):
    """Input data that cannot be used: names the file, the row and the remedy."""


class TrainingError(MmkdError):
    """A training run that has to stop: NaN loss, no disk space, a broken checkpoint."""


class ReleaseError(MmkdError):
    """A release that does not verify in a clean process."""
