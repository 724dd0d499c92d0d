"""timm's networks as backbones (`wsss.networks.backbones.timm_networks` builds them)."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wsss.data.images import Normalisation
from wsss.networks.backbones.backbone import Backbone, Block


class Layout(NamedTuple):
    """What is measured of a network.

    Attributes:
        options: further arguments of `timm.create_model`.
        indices, modules: of the stages, in timm's `forward_intermediates` and as names of modules.
        channels, strides, feature_channels, feature_stride: as of `Backbone`.
        multiple: images are padded to sides that are multiples of it; 1 if the grids are ceil(side / stride) without it.
        channels_last: whether its modules return maps as (B, h, w, D).
        head: whether the features are normalised by timm's `forward_head`.
        separate: whether the features are another tensor than the last stage.
    """

    options: dict[str, Any]
    indices: tuple[int, ...]
    modules: tuple[str, ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    feature_channels: int
    feature_stride: int
    multiple: int
    channels_last: bool
    head: bool
    separate: bool


class TimmBackbone(Backbone):
    """A network of timm, `net`; parameter names are timm's after "net."."""

    net: Any

    def __init__(self, net: Any, layout: Layout):
        super().__init__()
        self.net, self.layout = net, layout
        self.channels, self.strides = layout.channels, layout.strides
        self.feature_channels, self.feature_stride = layout.feature_channels, layout.feature_stride
        self.normalisation = Normalisation(tuple(net.pretrained_cfg["mean"]), tuple(net.pretrained_cfg["std"]))
        self.pooled = nn.Identity()   # so that the features are the output of a module, in the network's layout

    def train(self, mode: bool = True) -> "TimmBackbone":
        """Set the mode, except that batch norm always uses its running statistics and never updates them."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def features(self, x: Tensor) -> Tensor:
        return self.as_map(self.pooled(self._before_pooling(self.net.forward_features(self._padded(x)))), x.shape[2:])

    def stages(self, x: Tensor) -> tuple[Tensor, ...]:
        stages = self.net.forward_intermediates(self._padded(x), indices=list(self.layout.indices), output_fmt="NCHW",
                                                intermediates_only=True)
        return tuple(self._cropped(stage, x.shape[2:], stride) for stage, stride in zip(stages, self.strides, strict=True))

    @property
    def stage_modules(self) -> tuple[nn.Module, ...]:
        modules = tuple(map(self.net.get_submodule, self.layout.modules))
        return (*modules, self.pooled) if self.layout.separate else modules

    def as_map(self, output: Tensor, size: Sequence[int]) -> Tensor:
        sides = [ceil(side, self.layout.multiple) * self.layout.multiple for side in size]
        strides = sorted({*self.strides, self.feature_stride})
        return self._cropped(map_of(output, sides, strides, self.layout.channels_last), size)

    def blocks(self, x: Tensor) -> tuple[Block, ...]:
        if not has_attention(self.net):
            return ()
        found: list[Tensor] = []
        outputs: list[Tensor] = []

        def see(probabilities: Tensor) -> Tensor:
            # with gradients enabled a leaf of the graph
            found.append(probabilities.detach().requires_grad_() if torch.is_grad_enabled() else probabilities)
            return found[-1]
        blocks = with_attention(self.net, see)
        for block in blocks:
            block.register_forward_hook(lambda block, args, output: outputs.append(output))
        net = copy(self.net)
        net._modules = {**self.net._modules, "blocks": nn.Sequential(*blocks)}
        net.forward_features(self._padded(x))
        features = [self.as_map(self._before_pooling(self.net.norm(output)), x.shape[2:]) for output in outputs]
        if any(probabilities.shape[-1] < features[0][0, 0].numel() for probabilities in found):
            return ()   # in windows
        return tuple(map(Block, found, features))

    def _before_pooling(self, output: Tensor) -> Tensor:
        """The output of timm's `forward_features` after the norm of its head."""
        return self.net.forward_head(output, pre_logits=True) if self.layout.head else output

    def _padded(self, x: Tensor) -> Tensor:
        height, width = (-side % self.layout.multiple for side in x.shape[2:])
        return F.pad(x, (0, width, 0, height)) if height or width else x

    def _cropped(self, maps: Tensor, size: Sequence[int], stride: int | None = None) -> Tensor:
        """Without the cells of the padding."""
        if self.layout.multiple == 1:
            return maps
        padded = ceil(size[0], self.layout.multiple) * self.layout.multiple
        height, width = (ceil(side, stride or padded // maps.shape[2]) for side in size)
        return maps[:, :, :height, :width]


def ceil(side: int, stride: int) -> int:
    return -(-side // stride)


def map_of(output: Tensor, size: Sequence[int], strides: Sequence[int], channels_last: bool) -> Tensor:
    """A network's own output for images of `size` as (B, D, h, w): of tokens (B, n, D), the last are the cells."""
    if output.ndim == 3:
        grids = [(ceil(size[0], stride), ceil(size[1], stride)) for stride in strides]
        grid = next(grid for grid in grids if grid[0] * grid[1] <= output.shape[1])   # the finest one that it has the tokens for
        return output[:, -grid[0] * grid[1]:].transpose(1, 2).unflatten(2, grid)
    return output.permute(0, 3, 1, 2) if channels_last else output


def has_attention(net: Any) -> bool:
    """Whether a network of timm has blocks whose attention `with_attention` can read."""
    attentions = [getattr(block, "attn", None) for block in getattr(net, "blocks", ())]
    return bool(attentions) and all(hasattr(each, "fused_attn") and hasattr(each, "attn_drop") for each in attentions)


def with_attention(net: Any, see: Callable[[Tensor], Tensor]) -> list[nn.Module]:
    """Copies of the blocks of a transformer, with the same parameters, that compute their attention by timm's path that is not
    fused: after its softmax, (B, heads, n, n), it is given to `see`, and the block goes on with what that returns. The network
    itself is not changed, because other threads may use it."""
    return [_with_modules(block, attn=_unfused(block.attn, see)) for block in net.blocks]


def _unfused(attention: Any, see: Callable[[Tensor], Tensor]) -> Any:
    dropout = _with_modules(attention.attn_drop)
    dropout.register_forward_hook(lambda module, inputs, output: see(output))
    unfused = _with_modules(attention, attn_drop=dropout)
    unfused.fused_attn = False
    return unfused


def _with_modules(module: Any, **modules: nn.Module) -> Any:
    """A copy of a module with the same parameters and hooks, but for some of its modules."""
    other = copy(module)
    other._modules = {**module._modules, **modules}
    other._forward_hooks = OrderedDict(module._forward_hooks)
    return other
