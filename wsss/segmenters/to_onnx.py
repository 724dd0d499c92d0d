"""Export of a segmentation network to ONNX for images of any height and width, checked against onnxruntime."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from wsss.errors import ConfigError
from wsss.resize import resize
from wsss.segmenters.segmenter import Segmenter

INPUT, OUTPUT = "image", "probabilities"
EXAMPLE = (2, 3, 75, 118)   # no multiple of a stride, so that the branches that pad are taken
CHECKED = ((1, 3, 64, 64), (2, 3, 97, 131), (3, 3, 33, 47), (1, 3, 160, 96), (1, 3, 250, 321))
TOLERANCE = 1e-4


def export_onnx(network: Segmenter, path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Write `network`, in evaluation mode in float32 on the CPU, to an ONNX file with `metadata`.

    Its input `image` is (B, 3, H, W) float32, normalised, with any B, H and W; its output `probabilities` (B, C + 1, H, W)
    float32: the softmax of the logits, which are resized to the input (bilinear). onnxruntime must give the same as torch to
    1e-4 for batches of several sizes.

    The exporters of torch are tried in turn, because neither takes every network: by tracing, which takes less than a second;
    then by torch.export, which takes up to minutes and follows more operations. `path` may be written even if none succeeds.

    Returns:
        JSON values: the exporter, the opset, the sizes that were checked and the largest difference.

    Raises:
        ConfigError: no exporter gives a file with the same results.
    """
    module, reasons = _AnySize(network).eval(), []
    for exporter in (_by_tracing, _by_torch_export):
        name = exporter.__name__.removeprefix("_").replace("_", " ")
        try:
            with warnings.catch_warnings(), _silent():
                warnings.simplefilter("ignore")   # of values that tracing takes for constants: `_difference` shows if they matter
                exporter(module, path)
            opset = _describe(path, metadata)
            difference = _difference(module, path)
        except Exception as error:   # whatever an exporter or a runtime can raise
            reasons.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            continue
        if difference <= TOLERANCE:
            return {"exporter": name, "opset": opset, "checked": [list(shape) for shape in CHECKED],
                    "largest_difference": difference}
        reasons.append(f"{name}: the results differ by {difference:.2g}")
    raise ConfigError(f"the network cannot be exported to ONNX for images of any size ({'; '.join(reasons)}). Nothing was "
                      "written. Use it from Python, or train another one: segmenter=NAME, backbone=NAME")


class _AnySize(nn.Module):
    """The exported network."""

    def __init__(self, network: Segmenter):
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        with _Poolings():
            logits = self.network(image)
        return resize(logits.float(), image.shape[2:]).softmax(1)


class _Poolings(TorchFunctionMode):
    """Adaptive average pooling as two matrix products: ONNX has it for a known size only."""

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function is F.adaptive_avg_pool2d:
            return adaptive_pool(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def adaptive_pool(input: Tensor, output_size: int | Sequence[int | None]) -> Tensor:
    """`F.adaptive_avg_pool2d` of (..., h, w)."""
    height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
    pooled = input if height is None else _means(input.shape[-2], height, input) @ input
    return pooled if width is None else pooled @ _means(input.shape[-1], width, input).T


def _means(side: int, bins: int, like: Tensor) -> Tensor:
    """(bins, side): row i has the weights of the mean over floor(i side / bins) to ceil((i + 1) side / bins), exclusive."""
    number = torch.arange(bins, device=like.device)[:, None]
    first, end = number * side // bins, ((number + 1) * side + bins - 1) // bins
    at = torch.arange(side, device=like.device)
    return ((at >= first) & (at < end)).to(like.dtype) / (end - first).to(like.dtype)


@contextmanager
def _silent() -> Iterator[None]:
    """Without standard output, also that of C++: an exporter that fails prints its graph there."""
    sys.stdout.flush()
    kept, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
        os.close(null)


def _by_tracing(module: nn.Module, path: Path) -> None:
    sides = {0: "batch", 2: "height", 3: "width"}
    torch.onnx.export(module, (torch.zeros(EXAMPLE),), str(path), dynamo=False, input_names=[INPUT], output_names=[OUTPUT],
                      dynamic_axes={INPUT: sides, OUTPUT: sides})


def _by_torch_export(module: nn.Module, path: Path) -> None:
    sides = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    torch.onnx.export(module, (torch.zeros(EXAMPLE),), str(path), dynamo=True, input_names=[INPUT], output_names=[OUTPUT],
                      dynamic_shapes=(sides,), external_data=False, verbose=False)


def _describe(path: Path, metadata: Mapping[str, str]) -> int:
    """Write metadata into an ONNX file; return its opset."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))


def _difference(module: nn.Module, path: Path) -> float:
    """The largest difference between onnxruntime and torch, for noise of the sizes `CHECKED`."""
    import onnxruntime

    session, found = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]), 0.0
    for shape in CHECKED:
        image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = module(image).numpy()
        result = session.run([OUTPUT], {INPUT: image.numpy()})[0]
        if result.shape != expected.shape or not np.isfinite(result).all():
            return float("inf")
        found = max(found, float(np.abs(result - expected).max()))
    return found
