"""The few exceptions a user can meet; each message gives the field, the value and the fix."""

import difflib
from collections.abc import Iterable


class ForewordError(Exception):
    """A fault the user can mend. The CLI prints the message without a traceback and exits 2."""


class ConfigError(ForewordError):
    """A configuration field is unknown, missing, or has a value that cannot work."""


class DataError(ForewordError):
    """A data file, record or split is missing, malformed or empty."""


class MissingDataError(DataError):
    """Data that others publish is not at hand: not in the data folder, and not to be had from the hub."""


class BackboneError(ForewordError):
    """A model cannot be loaded, or cannot take the soft prompt that was asked for."""


class PromptError(ForewordError):
    """A soft prompt does not fit its backbone, its batch or the requested operation."""


class ArtifactError(ForewordError):
    """A saved soft prompt is missing, damaged, or belongs to another backbone."""


class TrainingError(ForewordError):
    """A training run met a state it must not go on from: NaN loss, no target token, a changed config."""


class MissingExtraError(ForewordError):
    """An optional dependency is not installed; the message names the extra that brings it."""


def nearest(value: object, valid: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the valid name closest to `value`, else a list of the valid names."""
    names = [str(name) for name in valid]
    close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; valid: {', '.join(sorted(names))}" if names else ""
