"""MCTformer: Xu et al., "Multi-class Token Transformer for Weakly Supervised Semantic Segmentation", CVPR 2022.

Official files (xulianuwa/MCTformer, 9606597): `models.py`, `engine.py`, `main.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from wsss.classifiers.method import ClassifierMethod

if TYPE_CHECKING:
    from torch import Tensor, nn

    from wsss.classifiers.class_tokens import ClassTokens
    from wsss.classifiers.classifier import Classifier
    from wsss.networks.backbones.backbone import Backbone

_OFFICIAL = "deit_small_patch16_224"   # main.py: deit_small_MCTformerV2_patch16_224, by timm's name


@dataclass
class MCTformer(ClassifierMethod):
    """A vision transformer with a token for each class, trained by the multi-label soft margin loss of their means (section 3.2).

    cell_head: whether also a 3x3 convolution of the tokens of the cells is trained, by the same loss of its mean over the cells;
    the two losses are added (MCTformer-V2, section 3.3).
    """

    cell_head: bool

    head: ClassVar[tuple[str, int]] = ("tokens", 1)
    official_file: ClassVar[str] = "checkpoint.pth"   # main.py

    @property
    def has_taps(self) -> bool:
        return self.cell_head

    def build(self, backbone: Backbone, n_classes: int) -> Classifier:
        """Raises ConfigError if the backbone is no vision transformer of timm with one class token."""
        from wsss.classifiers.class_tokens import ClassAndCellTokens, ClassTokens

        return (ClassAndCellTokens if self.cell_head else ClassTokens)(backbone, n_classes)

    def losses(self, net: Classifier, images: Tensor, labels: Tensor, *more: Tensor) -> dict[str, Tensor]:
        """As `ClassifierMethod.losses`; with `cell_head` also "class_tokens" and "cells", whose sum is the loss."""
        from torch.nn.functional import multilabel_soft_margin_loss

        from wsss.classifiers.class_tokens import class_logits

        network = cast("ClassTokens", net)   # of `build`
        tokens, features = network.both(images)
        of_tokens = multilabel_soft_margin_loss(class_logits(tokens).float(), labels)
        maps = network.cell_maps(features)
        if maps is None:
            return {"loss": of_tokens}
        of_cells = multilabel_soft_margin_loss(maps.float().mean((2, 3)), labels)
        return {"loss": of_tokens + of_cells, "class_tokens": of_tokens, "cells": of_cells}

    def groups(self, net: Classifier, head_lr_mult: float) -> list[tuple]:
        """As `ClassifierMethod.groups`. Biases, norms, tokens and positions do not decay (`main.py`: `create_optimizer`)."""
        found: list[tuple[list[nn.Parameter], float, bool]] = []
        still = {id(parameter) for name, parameter in net.named_parameters()
                 if parameter.ndim < 2 or name.rpartition(".")[2] in ("tokens", "positions", "pos_embed")}
        for parameters, factor in zip(net.parameter_groups(), (1.0, head_lr_mult), strict=True):
            for decays in (True, False):
                found.append(([each for each in parameters if (id(each) not in still) == decays], factor, decays))
        return [group for group in found if group[0]]

    def own(self, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        from wsss.official_mctformer import is_mctformer, own_names

        return own_names(tensors, where) if is_mctformer(tensors) else dict(tensors)

    def official(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        from wsss.official_mctformer import official_names

        return {"model": official_names(state)}

    def no_official(self, backbone: Mapping[str, Any]) -> str:
        network = backbone.get("network", "")
        return "" if network.startswith(_OFFICIAL) else (f"has the backbone {network}, the official network of MCTformer a "
                                                         f"{_OFFICIAL}")


Method = MCTformer
