"""The networks of the official code (IRN, LPCAM, ReCAM, AMN, AffinityNet): the names of their parameters, and their files."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from wsss.errors import WeightsError
from wsss.files import replacing, user_path
from wsss.networks.weights import read_tensors


# Prefix of official names -> prefix of our names. The official networks register most layers several times
# (`self.resnet50`, `self.stage2`, `self.backbone`), and so do their state dicts.
def _layout(first_stage: int, heads: Mapping[str, str]) -> dict[str, str]:
    """`first_stage`: the number of the stage that holds layer1; it is 1 in resnet50_cam.py, 2 in resnet50_irn.py."""
    stages = {"stage1.0.": "backbone.conv1.", "stage1.1.": "backbone.bn1."}
    stages |= {f"stage{first_stage + i}.{4 if first_stage + i == 1 else 0}.": f"backbone.layer{i + 1}." for i in range(4)}
    again = {f"backbone.{int(name[5]) - 1}{name[6:]}": own for name, own in stages.items()}
    return {"resnet50.": "backbone.", **stages, **again, **heads}


CAM = _layout(1, {"classifier.": "classifier.", "newly_added.0.": "classifier."})
AMN = _layout(1, {"label_enc.": "label_embedding.", "newly_added.1.": "label_embedding."}
              | {f"{place}.1.c{i}.": f"pyramid.{i}." for place in ("classifier", "newly_added.0") for i in range(4)})
IRN = _layout(2, {name: own for branch, count in (("edge", 6), ("dp", 7)) for i in range(1, count + 1)
                  for name, own in ((f"fc_{branch}{i}.", f"fc_{branch}{i}."), (f"{branch}_layers.{i - 1}.", f"fc_{branch}{i}."))}
              | dict.fromkeys(("mean_shift.", "fc_dp7.4.", "dp_layers.6.4."), "mean_shift."))
# Its state dict has the backbone without a prefix, and each parameter once (network/resnet38_aff.py).
PSA = {"": "backbone.", **{f"{name}.": f"{name}." for name in ("f8_3", "f8_4", "f8_5", "f9")}}
# Constants of the training loss, which res50_irn.pth also holds; MeanShift is a batch norm in later versions of IRN.
_IGNORED = re.compile(r"path_indices\d+|disp_target|(fc_dp7|dp_layers\.6)\.4\.(running_var|num_batches_tracked)")


def own_state(tensors: Mapping[str, Tensor], layout: Mapping[str, str], where: str) -> dict[str, Tensor]:
    """Rename a state dict of the official network (`layout`: CAM, AMN, IRN or PSA) to our names; our own names are kept.

    A leading `module.` (torch's DataParallel) is dropped; unknown names are kept for the caller to refuse.
    Raises WeightsError if two copies of one parameter differ or a number is not finite.
    """
    prefixes = sorted([*layout.items(), ("backbone.", "backbone.")], key=lambda item: -len(item[0]))
    state: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    for full_name, value in tensors.items():
        name = full_name.removeprefix("module.")
        if layout is IRN and _IGNORED.fullmatch(name):
            continue
        own = next((ours + name.removeprefix(prefix) for prefix, ours in prefixes if name.startswith(prefix)), name)
        if own in state and not torch.equal(state[own], value):
            raise WeightsError(f"{where}: {sources[own]} and {full_name} are one parameter of the official network, but differ. "
                               "Use a file with the complete network")
        if value.is_floating_point() and not value.isfinite().all():
            raise WeightsError(f"{where}: {full_name} holds numbers that are not finite. Use a checkpoint of a finite training")
        state[own], sources[own] = value, full_name
    return state


def write_network(path: Path | str, state: Mapping[str, Tensor], layout: Mapping[str, str]) -> None:
    """Write one of our state dicts in the layout of the official network, completely or not at all."""
    write_state(path, official_state(state, layout))


def write_state(path: Path | str, state: Mapping[str, Tensor]) -> None:
    """Write a state dict as it is, as a `.pth` file, completely or not at all."""
    with replacing(path) as temporary:
        torch.save(dict(state), temporary)


def official_state(state: Mapping[str, Tensor], layout: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename one of our state dicts to all names of the official network, which loads it with `strict=True`."""
    return {prefix + name.removeprefix(ours): value for prefix, ours in layout.items()
            for name, value in state.items() if name.startswith(ours)}


# ReCAM stores its second classifier in a file beside that of the network (step/train_recam.py): its name begins with the second
# of these where the other has the first. In our state dict it is SECOND.
RECAM_FILES, SECOND = ("res50_recam", "recam_predictor"), "second.weight"


def _beside(path: Path | str) -> Path:
    path = user_path(path)
    return path.with_name(path.name.replace(*RECAM_FILES))


def read_second(path: Path | str, where: str) -> Tensor:
    """The weights (C, D, 1, 1) of ReCAM's second classifier in the file beside that of the network, `path`.

    `where` names the file of the network in messages. Raises WeightsError if there is no such file or it has other content.
    """
    beside = _beside(path)
    if beside == user_path(path) or not beside.is_file():
        raise WeightsError(f"{where} has no second classifier of ReCAM ({SECOND}). The official code stores it in another file: "
                           f"keep its names, as {RECAM_FILES[0]}_4.pth and {RECAM_FILES[1]}_4.pth, in one folder")
    tensors = read_tensors(beside)
    if tensors.keys() != {"classifier.weight"}:
        raise WeightsError(f"{beside} holds {', '.join(tensors) or 'nothing'}; expected classifier.weight alone, as the official "
                           "code of ReCAM writes it. Use the file that was written beside the network")
    return tensors["classifier.weight"]


def write_second(path: Path | str, weight: Tensor) -> None:
    """Write ReCAM's second classifier beside the file of the network, `path`, completely or not at all."""
    with replacing(_beside(path)) as temporary:
        torch.save({"classifier.weight": weight}, temporary)
