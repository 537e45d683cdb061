"""Every error Scenemill raises on purpose, in one tree.

    ScenemillError
    ├── SettingsError       wrong usage: a setting, a path, an argument         exit code 2
    ├── SceneError          the scene cannot be processed correctly: refused    never retried, quarantined
    │   └── DamagedSceneError   its bytes are damaged                           never retried, quarantined
    ├── ModelError          the checkpoint or predictor is unusable or unfit    never retried, quarantined
    ├── DivergedError       training found no weights worth keeping             never retried
    ├── LabelError          labels cannot be used for training or evaluation    never retried
    └── TransientError          disk, network or a worker failed; a retry may help  retried
        ├── AccessError         a store refuses us, for who we are              never retried
        ├── MissingError        a store has no such bucket or object            retried
        └── ConflictError       somebody else wrote the same object             retried

Each message gives the rule, the offending value, where it was found and the way out, in one
paragraph that an operator can act on without reading code.
"""


class ScenemillError(Exception):
    """The root: anything Scenemill reports as one clear paragraph instead of a traceback."""


class SettingsError(ScenemillError):
    """A setting, argument or path is wrong; nothing has been started."""


class SceneError(ScenemillError):
    """A scene is refused because it cannot be processed correctly; the reason is in the message."""


class DamagedSceneError(SceneError):
    """A scene's bytes cannot be decoded; met on opening or half-way through reading."""


class ModelError(ScenemillError):
    """A checkpoint cannot be loaded, does not fit the scene, or returned impossible values."""


class DivergedError(ScenemillError):
    """Loss or weights became NaN or infinite before any checkpoint was worth keeping."""


class LabelError(ScenemillError):
    """Labels cannot be used: unreadable, without CRS, or not touching their scene."""


class TransientError(ScenemillError):
    """A fault outside the data (disk, network, worker); the same work may succeed later."""


class AccessError(TransientError):
    """A store or server refuses for want of credentials or permission; only the operator can mend that."""


class MissingError(TransientError):
    """A store has no such bucket or object."""


class ConflictError(TransientError):
    """What was to be written only under a condition was written by somebody else."""
