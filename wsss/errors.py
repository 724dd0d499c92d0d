"""The errors of this project: each message says what, where, what was expected and what to do next.

`WsssError` is the one base type. The subclasses also derive from the built-in that fits, so that a caller of a plain
function (`wsss.kmeans(...)`) can catch `ValueError` as anywhere else in Python.
"""


class WsssError(Exception):
    """Base of every error raised on purpose by this project."""


class DataError(WsssError, ValueError):
    """A data set, image, mask, label or list is not what it must be."""


class ConfigError(WsssError, ValueError):
    """The configuration names something unknown, or combines what cannot go together."""


class ArtifactError(WsssError, ValueError):
    """A file written by an earlier step is missing, damaged or does not fit."""


class ArgumentError(WsssError, ValueError):
    """A public function of `wsss` was given a tensor or number it cannot work with."""


class WeightsError(WsssError, ValueError):
    """A weights file is missing, damaged, or does not fit the network."""


class BackendError(WsssError, RuntimeError):
    """An optional back end (pydensecrf, kmeans-pytorch) or device was asked for and is not there."""
