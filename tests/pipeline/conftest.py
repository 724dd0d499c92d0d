"""A finished run with a segmentation network, for the tests of what is done with one."""

from pathlib import Path

import pytest

from pipeline import Pipeline
from tests.conftest import SMOKE, copied

STEPS = ("train_cam", "make_cam", "make_lpcam", "eval_cam", "cam_to_ir_label", "train_irn", "make_sem_seg_labels", "eval_sem_seg",
         "train_seg", "infer_seg", "eval_seg")
CHOSEN = (*SMOKE, f"steps=[{','.join(STEPS)}]", "train_seg.epochs=2", "train_seg.checkpoint_steps=2", "train_seg.parts=2", "train_seg.absent_classes=true",
          "infer_seg.background_weight=1.0", "segmenter.width=16")


@pytest.fixture(scope="session")
def trained(made_once, smoke_outputs) -> Path:
    """`outputs` with the finished run, continued to the scores of a segmentation network, and its report: never changed."""
    def make(outputs: Path) -> None:
        copied(smoke_outputs, outputs)
        Pipeline.compose(*CHOSEN, f"outputs={outputs}", "report.write=true").run()
    return made_once("trained", make)
