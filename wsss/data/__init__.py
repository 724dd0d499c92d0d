"""Data sets as descriptions: ids, classes, image labels, files and lists. Nothing here knows a step or a run."""

from wsss.data.dataset import Dataset, check_id
from wsss.data.folder import open_folder
from wsss.data.shapes import make_shapes

__all__ = ["Dataset", "check_id", "make_shapes", "open_folder"]
