"""The errors of this project: each message says what, where, what was expected and what to do next.

`WsssError` is the one base type. The subclasses also derive from the built-in that fits, so that a caller of a plain
function (`wsss.kmeans(...)`) can catch `ValueError` as anywhere else in Python.
"""

import copy


class WsssError(Exception):
    """Base of every error raised on purpose by this project."""


class DataError(WsssError, ValueError):
    """A data set, image, mask, label or list is not what it must be."""


class ConfigError(WsssError, ValueError):
    """The configuration names something unknown, or combines what cannot go together."""


class ArtifactError(WsssError, ValueError):
    """A file written by an earlier step is missing, damaged or does not fit.

    `damaged`: that file (a path, or what stands for one), where it is only to be put away and made again by its step.
    """

    def __init__(self, message: str, damaged: object = None):
        super().__init__(message)
        self.damaged = damaged


class ArgumentError(WsssError, ValueError):
    """A public function of `wsss` was given a tensor or number it cannot work with."""


class WeightsError(WsssError, ValueError):
    """A weights file is missing, damaged, or does not fit the network."""


class BackendError(WsssError, RuntimeError):
    """An optional back end (pydensecrf, kmeans-pytorch) or device was asked for and is not there."""


class StorageError(WsssError, OSError):
    """A file or folder cannot be written: the disk is full, read-only, or belongs to somebody else."""


class BusyError(WsssError, RuntimeError):
    """Another process works on what this one needs."""


def prefixed(error: WsssError, where: str) -> WsssError:
    """The same error, its message starting with where it happened: the id of an image, the name of a step."""
    named = copy.copy(error)
    named.args = (f"{where}: {error}",)
    return named
