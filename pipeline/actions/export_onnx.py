"""Write the trained segmentation network of a run as ONNX, `run=NAME out=FILE.onnx`, with its preprocessing described.

FILE.json beside it has the same description as the metadata of the file, and how it was checked.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.actions._network import NetworkSettings, check_run
from pipeline.cluster.machine import prepared_process
from pipeline.runfolder.reading import reading
from pipeline.segmentation import ROLE, finished_network, network_context, run_of, training_of
from steps.runtime.artifacts import write_json
from steps.runtime.context import StepContext, require, settings_of
from steps.runtime.schedule import WEIGHTS
from wsss.data.dataset import Dataset
from wsss.data.images import Normalisation
from wsss.errors import BackendError, ConfigError
from wsss.files import user_path, write_bytes
from wsss.networks.facts import file_sha256

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
SUFFIX = ".onnx"


@dataclass
class Settings(NetworkSettings):
    """The keys of the action."""


def check(config: Any) -> None:
    check_run(config)
    require((config.out or "").endswith(SUFFIX), "out", config.out, f"a file to write: out=FILE{SUFFIX}")


def do(pipeline: Any) -> dict[str, Any]:
    """Write `out` and the JSON file beside it; return the content of the latter.

    Raises BackendError without the packages; ConfigError if the run has no trained network, it cannot be exported, or `out`
    exists and `force` is false.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise BackendError(f'action=export_onnx needs the packages {", ".join(missing)}. Install them: pip install -e ".[onnx]"')
    config, run, out = pipeline.config, run_of(pipeline), user_path(pipeline.config.out)
    if run.path.resolve() in out.resolve().parents:
        raise ConfigError(f"out={out} is inside the run {run.path}. Choose another place with out=FILE{SUFFIX}")
    if out.exists() and not config.force:
        raise ConfigError(f"out={out} exists. Set force=true to replace it, or choose another file with out=FILE{SUFFIX}")
    import torch

    device = torch.device("cpu")
    finished, name = finished_network(config, run, "export_onnx")
    with prepared_process(config.threads, device), reading(run, {training_of(finished, name)}, pipeline.console.warning):
        context = network_context(finished, name, pipeline.overrides, pipeline.runtime())
        context = replace(context, runtime=replace(context.runtime, device=device, precision="float32"))
        return _export(context, out)


def run(pipeline: Any) -> int:
    facts = do(pipeline)
    out = user_path(pipeline.config.out)
    pipeline.console.result(f"{out} and {out.with_suffix('.json').name}: {facts['input']} to {facts['output']}, opset "
                            f"{facts['opset']}, exported {facts['exporter']}; onnxruntime differs from torch by at most "
                            f"{facts['largest_difference']:.1g} on {len(facts['checked'])} sizes")
    return 0


def _export(context: StepContext, out: Path) -> dict[str, Any]:
    from steps.runtime.networks import load_segmenter
    from wsss.segmenters.to_onnx import export_onnx

    network = load_segmenter(context)
    facts = {**description(context.dataset, network.backbone.normalisation),
             "weights_sha256": file_sha256(context.input(ROLE) / WEIGHTS)}
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / out.name
        checked = export_onnx(network, path, {key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                                              for key, value in facts.items()})
        content = path.read_bytes()
    settings = {key: value for key, value in settings_of(context.settings).items() if key != "split"}
    facts |= {**checked, "masks_of_the_run": settings}   # which are not part of the network
    write_bytes(out, content)
    write_json(out.with_suffix(".json"), facts)
    return facts


def description(dataset: Dataset, normalisation: Normalisation) -> dict[str, Any]:
    """How an image becomes the input of the exported network, and what the output is."""
    from wsss.segmenters.to_onnx import INPUT, OUTPUT

    limits = {"at most": dataset.max_side, "at least": dataset.min_side}
    wanted = " and ".join(f"{what} {side}" for what, side in limits.items() if side is not None)
    return {
        "input": INPUT, "input_layout": "NCHW: (batch, 3, height, width), each of any size but the 3", "input_type": "float32",
        "channels": "RGB", "range": [0, 1], "mean": list(normalisation.mean), "std": list(normalisation.std),
        "normalisation": "(value / 255 - mean) / std, of 8-bit values, per channel",
        "max_side": dataset.max_side, "min_side": dataset.min_side,
        "resize": (f"before the normalisation so that the longer side is {wanted} pixels, by Pillow's bicubic filter; the output "
                   "is resized back, bilinear" if wanted else "none: the image in its own size"),
        "output": OUTPUT, "output_layout": "NCHW: (batch, labels, height, width), in the size of the input",
        "output_type": "float32",
        "output_content": "the softmax over the labels; the mask is its argmax. One scale, no mirror image, no CRF",
        "labels": ["background", *dataset.classes]}
