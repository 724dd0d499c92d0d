"""Decoders of segmentation-models-pytorch on the project's backbones (`wsss.segmenters.smp`)."""

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder, DPTSegmentationHead
from torch import Tensor, nn

from wsss.errors import ArgumentError, ConfigError
from wsss.networks.backbones.backbone import Backbone
from wsss.segmenters.segmenter import Segmenter

_SIDE = 32               # pixels: the coarsest maps of most decoders have this stride, on any backbone
_STAGES = 4              # the last ones of the backbone: a ResNet has its stem before them
_SMALLEST = {"pan": 8}   # cells of a side of the coarsest stage that a decoder needs: PAN halves it three times


class SMPSegmenter(Segmenter):
    """`decoder` and `head` are smp's. The images are padded on the right and below with 0, their mean colour, to multiples of the
    coarsest stride; the logits have their size."""

    def __init__(self, backbone: Backbone, architecture: str, depth: int, decoder: nn.Module, head: nn.Module):
        super().__init__(backbone)
        self.architecture, self.depth, self.decoder, self.head = architecture, depth, decoder, head

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        below, right = (padded - side for padded, side in zip(self.padded(height, width), (height, width)))
        x = F.pad(x, (0, right, 0, below))
        return self.decode(x, self.backbone.stages(x))[:, :, :height, :width]

    def padded(self, *sides: int) -> list[int]:
        coarsest = max(self.backbone.strides)
        multiple = coarsest if _SIDE % coarsest else _SIDE
        smallest = _SMALLEST.get(self.architecture, 1) * coarsest
        # of numbers that are not negative, so that ONNX, whose division rounds towards 0, has the same
        return [max((side + multiple - 1) // multiple * multiple, smallest) for side in sides]

    def decode(self, x: Tensor, stages: Sequence[Tensor]) -> Tensor:
        """The logits of images of a padded size and the outputs of the stages, in the size of the images."""
        if self.architecture == "dpt":
            return self.head(self.decoder(list(stages[-_STAGES:]), [None] * _STAGES))
        half = x[:, :0, ::2, ::2]   # no channels, as of smp's own transformers
        return self.head(self.decoder([x, half, *stages[-_STAGES:]][:self.depth + 1]))


class _Encoder(nn.Module):
    """What smp's models ask of an encoder while they are built."""

    def __init__(self, channels: tuple[int, ...], depth: int, output_stride: int):
        super().__init__()
        self.out_channels = [3, 0, *channels][:depth + 1]

    def set_in_channels(self, *args: Any, **kwargs: Any) -> None:
        """They stay 3."""

    make_dilated = set_in_channels   # the backbone has its stride


def smp_segmenter(architecture: str, backbone: Backbone, n_labels: int) -> SMPSegmenter:
    """The network with random weights from torch's global generator. Raises ConfigError if its parts do not fit."""
    try:
        net = _dpt(backbone, n_labels) if architecture == "dpt" else _built(architecture, backbone, n_labels)
        _try(net)
    except Exception as error:   # whatever smp's decoders raise for stages that they cannot use
        strides = ", ".join(map(str, backbone.strides[-_STAGES:]))
        raise ConfigError(f"segmenter.architecture={architecture} does not work with the stages of {backbone.name}, which have "
                          f"strides {strides} ({type(error).__name__}: {error}). Choose another architecture or backbone; a "
                          "convolutional network of timm has strides 4, 8, 16, 32 with output_stride=32") from error
    return net


def _built(architecture: str, backbone: Backbone, n_labels: int) -> SMPSegmenter:
    kind = smp.MODEL_ARCHITECTURES_MAPPING[architecture]
    known = inspect.signature(kind).parameters
    channels, strides = backbone.channels[-_STAGES:], backbone.strides[-_STAGES:]
    depth = min(known["encoder_depth"].default, len(channels) + 1)
    options: dict[str, Any] = {"encoder_depth": depth}
    if "encoder_output_stride" in known:
        options["encoder_output_stride"] = strides[depth - 2]
    if "decoder_channels" in known and isinstance(widths := known["decoder_channels"].default, tuple):
        options["decoder_channels"] = widths[-depth:]
    name = f"wsss-{id(backbone)}"
    smp.encoders.encoders[name] = {"encoder": partial(_Encoder, channels), "params": {}, "pretrained_settings": {}}
    try:
        model = smp.create_model(architecture, name, None, classes=n_labels, **options)
    finally:
        del smp.encoders.encoders[name]
    return SMPSegmenter(backbone, architecture, depth, model.decoder, model.segmentation_head)


def _dpt(backbone: Backbone, n_labels: int) -> SMPSegmenter:
    """smp builds DPT on networks of timm only."""
    decoder = DPTDecoder(backbone.channels[-_STAGES:], backbone.strides[-_STAGES:], encoder_has_prefix_tokens=False,
                         readout="ignore")
    head = DPTSegmentationHead(256, n_labels, kernel_size=3, upsampling=2)
    initialize_decoder(decoder)
    initialize_head(head)
    return SMPSegmenter(backbone, "dpt", _STAGES, decoder, head)


def _try(net: SMPSegmenter) -> None:
    """Raise what the decoder raises for the stages of a small image, or ArgumentError if the logits have another size."""
    backbone, sides = net.backbone, net.padded(_SIDE, 2 * _SIDE)
    zeros, training = partial(next(net.decoder.parameters()).new_zeros, 1), net.training
    stages = [zeros(channels, *(side // stride for side in sides))
              for channels, stride in zip(backbone.channels, backbone.strides)]
    with torch.no_grad():
        size = list(net.eval().decode(zeros(3, *sides), stages).shape[2:])
    net.train(training)
    if size != sides:
        raise ArgumentError(f"its logits are {size} for images of {sides}")
