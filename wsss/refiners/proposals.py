"""The vote of class-agnostic masks, as of Segment Anything.

After Chen et al., "Segment Anything Model (SAM) Enhanced Pseudo Labels for Weakly Supervised Semantic Segmentation", 2023 (SEPL,
github.com/cskyl/SAM_WSSS: `merge/max_iou_imp2.py`), and Jiang & Yang, "Segment Anything is A Good Pseudo-label Generator for
Weakly Supervised Semantic Segmentation", 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from wsss.files import user_path
from wsss.refiners.method import Advice, RefinerMethod, SeedImage

if TYPE_CHECKING:
    from torch import Tensor

    from wsss.data.dataset import Dataset


@dataclass
class Proposals(RefinerMethod):
    """Each mask gets the class of the highest mean seed map in it, if that is above the background threshold
    (`wsss.refinement.proposals.vote_of_proposals`). SEPL counts pixels of a pseudo mask instead, and takes a mask of which more
    than half has a class; the mean does not depend on how the seed is cut.

    masks: the folder of the masks, in the forms of `wsss.data.proposals`.
    """

    masks: str | None

    title: ClassVar[str] = "proposals"
    subject: ClassVar[str] = "the proposals are"
    own_files: ClassVar[bool] = True

    @property
    def folder(self) -> Path:
        return user_path(self.masks or "")

    def check(self, dataset: Dataset, ids: Collection[str]) -> None:
        from wsss.data.proposals import check_proposals

        self.require(self.masks is not None, "masks", "a folder with the proposals of each image: refiner.masks=DIR")
        check_proposals(self.folder, dataset, [i for i in ids if dataset.labels[i]])   # others are background

    def files(self, dataset: Dataset) -> dict[str, str]:
        from wsss.data.proposals import digest_of_proposals

        return {"masks": digest_of_proposals(self.folder, dataset.lists["all"])} if self.masks is not None else {}

    def scores(self, image: SeedImage, scores: Tensor) -> Tensor:
        """The mean scores (n, K + 1, H, W) of the proposals."""
        from wsss.data.proposals import read_proposals
        from wsss.refinement.proposals import vote_of_proposals

        return vote_of_proposals(scores, read_proposals(self.folder, image.id, (scores.shape[2], scores.shape[3])))

    def memory(self, labellings: int, gpu: bool) -> tuple[float, float]:
        return 4 * labellings + 60, 8 * labellings   # and the masks: a few numbers of 8 bytes for each pixel

    @classmethod
    def advice(cls, cause: str | None, setting: Callable[..., Any]) -> list[Advice]:
        return [("refiner", "crf", "a dense CRF on the seeds, no proposals"), *super().advice(cause, setting)]


Method = Proposals
