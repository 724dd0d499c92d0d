"""The science of weakly supervised semantic segmentation on plain arrays and tensors, without configuration."""

from wsss.affinity import affinity_losses, edge_to_affinity
from wsss.cam import class_activation_maps, multi_scale_cam, multi_scale_features
from wsss.crf import DenseCRF, crf_labels, unary_from_labels
from wsss.instance_metrics import CocoPrecision, InstancePrecision
from wsss.instances import Detections, detect_instances, group_pixels, refine_centroids, walk_instances
from wsss.ir_label import ir_label
from wsss.kmeans import kmeans
from wsss.lpcam import class_probability, lpcam_maps, mean_direction, select_prototypes, split_cells
from wsss.maps import pack, rebuild
from wsss.metrics import Confusion, ThresholdCounts, average_precision
from wsss.random_walk import random_walk

__all__ = [
    "CocoPrecision", "Confusion", "DenseCRF", "Detections", "InstancePrecision", "ThresholdCounts", "affinity_losses",
    "average_precision", "class_activation_maps", "class_probability", "crf_labels", "detect_instances", "edge_to_affinity",
    "group_pixels", "ir_label", "kmeans", "lpcam_maps", "mean_direction", "multi_scale_cam", "multi_scale_features", "pack",
    "random_walk", "rebuild", "refine_centroids", "select_prototypes", "split_cells", "unary_from_labels", "walk_instances",
]
