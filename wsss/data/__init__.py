"""Data sets: ids, classes, image labels, files and lists. Independent of steps and runs."""

from wsss.data.coco import open_coco
from wsss.data.coco_prepare import prepare_coco
from wsss.data.dataset import Dataset
from wsss.data.folder import open_folder
from wsss.data.ids import check_id
from wsss.data.shapes import make_shapes
from wsss.data.voc import open_voc
from wsss.data.voc_prepare import prepare_voc
from wsss.data.wsol import open_wsol, prepare_wsol

__all__ = ["Dataset", "check_id", "make_shapes", "open_coco", "open_folder", "open_voc", "open_wsol", "prepare_coco",
           "prepare_voc", "prepare_wsol"]
