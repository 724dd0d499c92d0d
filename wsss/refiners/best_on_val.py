"""The refiner that is best on the val masks."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from wsss.refiners.crf import CRF
from wsss.refiners.method import RefinerMethod
from wsss.refiners.none import NoRefinement
from wsss.refiners.walk import Walk
from wsss.refiners.walk_crf import WalkCRF


@dataclass
class BestOnVal(WalkCRF):
    """The best of none, crf, walk and walk_crf on the val masks, with the settings of walk_crf. Without val masks it is crf,
    which needs no IRN (docs/results.md has the loss)."""

    def candidates(self, has_val: bool) -> Mapping[str, RefinerMethod]:
        kinds: tuple[type[RefinerMethod], ...] = (NoRefinement, CRF, Walk, WalkCRF) if has_val else (CRF,)
        found = [kind(**{item.name: getattr(self, item.name) for item in fields(kind) if item.init}) for kind in kinds]
        return {each.method: each for each in found}


Method = BestOnVal
