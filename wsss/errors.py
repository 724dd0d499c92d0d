"""The errors of this project: each message names the problem, its place, what was expected and what to do next.

`WsssError` is the base class. Each subclass also derives from a matching built-in, so that a caller of a plain function
(`wsss.kmeans(...)`) can catch `ValueError`.
"""

import copy


class WsssError(Exception):
    """Base of every error raised on purpose by this project."""


class DataError(WsssError, ValueError):
    """A data set, image, mask, label or list is invalid."""


class ConfigError(WsssError, ValueError):
    """The configuration names something unknown or combines incompatible options."""


class ArtifactError(WsssError, ValueError):
    """A file written by an earlier step is missing, damaged or does not fit.

    `damaged`: the file (a path or a similar object) if moving it away and running its step again fixes the error.
    """

    def __init__(self, message: str, damaged: object = None):
        super().__init__(message)
        self.damaged = damaged


class ArgumentError(WsssError, ValueError):
    """An argument of a public function of `wsss` is invalid."""


class WeightsError(WsssError, ValueError):
    """A weights file is missing, damaged, or does not fit the network."""


class BackendError(WsssError, RuntimeError):
    """A requested optional back end (pydensecrf, kmeans-pytorch) or device is not available."""


class StorageError(WsssError, OSError):
    """A file or folder cannot be written: the disk is full or read-only, or permission is missing."""


class BusyError(WsssError, RuntimeError):
    """Another process is using a resource that this one needs."""


def prefixed(error: WsssError, where: str) -> WsssError:
    """A copy of the error whose message starts with `where`: the id of an image or the name of a step."""
    named = copy.copy(error)
    named.args = (f"{where}: {error}",)
    return named
