"""Compositions of the configuration in tests, of which there are thousands: `composed` stands for `pipeline.config._composed`.

What Hydra makes of the chosen groups is kept in the process; in a copy of it, Hydra's own function sets the values. In
tests/pipeline/test_config.py the results are compared with those of Hydra alone.
"""

import pickle
from collections.abc import Sequence
from functools import cache

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig

from pipeline import config, order
from pipeline.presets import CONF

by_hydra = config._composed
_kept: dict[tuple, bytes] = {}


def composed(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    values = [word for word in overrides if _only_sets_a_value(word)]
    groups = tuple(word for word in overrides if word not in values)
    files = tuple((str(path), path.stat().st_mtime_ns) for path in CONF.rglob("*.yaml"))
    key = name, groups, files, config._register.cache_info().misses, tuple(row.name for row in order.STEPS)
    if key not in _kept:
        _kept[key] = pickle.dumps(by_hydra(name, groups))
    made = pickle.loads(_kept[key])
    ConfigLoaderImpl._apply_overrides_to_config([_parsed(word) for word in values], made)
    return made


def _only_sets_a_value(word: str) -> bool:
    """Whether a word sets a key to one value: it chooses no group, adds and removes nothing, and is no sweep and no mistake."""
    key = word.partition("=")[0]
    if not key[:1].isalpha() or {"@", "/"} & set(key) or key.split(".")[0] == "hydra" or (CONF / key).is_dir():
        return False
    try:
        return not _parsed(word).is_sweep_override()
    except HydraException:
        return False


@cache
def _parsed(word: str) -> Override:
    return OverridesParser.create().parse_override(word)
