"""Exceptions that Scenemill raises on purpose, in one tree.

    ScenemillError
    ├── SettingsError           a setting, path or argument is wrong                    exit code 2
    ├── SceneError              the scene cannot be processed correctly                 never retried, quarantined
    │   └── DamagedSceneError   its bytes are damaged                                   never retried, quarantined
    ├── ModelError              the checkpoint or predictor is unusable or unfit        never retried, quarantined
    ├── DivergedError           training found no weights worth keeping                 never retried
    ├── LabelError              labels cannot be used for training or evaluation        never retried
    └── TransientError          disk, network or a worker failed; a retry may help      retried
        ├── AccessError         a store or disk denies access, or a folder is not ours  never retried
        ├── MissingError        a store has no such bucket or object                    retried
        └── ConflictError       another process wrote the same object                   retried

Each message gives the rule, the offending value, its source and the remedy, in one paragraph that an operator can act
on without reading code. It is one line of printable text, whatever names of files, bands and classes are in it. Secrets
of the addresses in it are left out, and very long values are cut.
"""

from __future__ import annotations

from pipeline.text import printable, without_secrets

MAX_MESSAGE = 4000
"""Maximum characters of a message, which may quote a value of any length."""


class ScenemillError(Exception):
    """Base class; the command reports it as one paragraph instead of a traceback."""

    def __init__(self, message: object = "") -> None:
        """Keep the message without secrets, at most `MAX_MESSAGE` characters of it."""
        super().__init__(_shortened(without_secrets(str(message))))

    def __str__(self) -> str:
        """The message, with escapes for characters that cannot be printed."""
        return printable(super().__str__())


class SettingsError(ScenemillError):
    """A setting, argument or path is wrong; no work has started."""


class SceneError(ScenemillError):
    """A scene cannot be processed correctly and is refused."""


class DamagedSceneError(SceneError):
    """A scene's bytes cannot be decoded, on opening or while reading."""


class ModelError(ScenemillError):
    """A checkpoint cannot be loaded, does not fit the scene, or returned impossible values."""


class DivergedError(ScenemillError):
    """Loss or weights became NaN or infinite before any checkpoint was worth keeping."""


class LabelError(ScenemillError):
    """Labels cannot be used: unreadable, without CRS, or not touching their scene."""


class TransientError(ScenemillError):
    """Disk, network or a worker failed, not the data; a retry may succeed."""


class AccessError(TransientError):
    """A store, server or disk denies access, or a folder is a link or foreign; only an operator can change that."""


class MissingError(TransientError):
    """A store has no such bucket or object."""


class ConflictError(TransientError):
    """A conditional write failed because another process wrote the object."""


def _shortened(text: str) -> str:
    """A text, with a mark in place of its middle if it is too long."""
    half = MAX_MESSAGE // 2
    return text if len(text) <= MAX_MESSAGE else f"{text[:half]} ... ({len(text):,} characters) ... {text[-half:]}"
