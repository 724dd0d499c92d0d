"""The science of weakly supervised semantic segmentation on plain arrays and tensors, without configuration."""

import importlib

# The module of each public name. It is imported when the name is first asked for, because torch takes seconds to import and
# what reads `wsss.errors` or `wsss.data` alone need not wait for it. No module may be called as one of these names.
_MODULES = {
    "CocoPrecision": "instance_metrics", "Confusion": "metrics", "DenseCRF": "crf", "Detections": "instances",
    "InstancePrecision": "instance_metrics", "ThresholdCounts": "metrics", "affinity_losses": "affinity",
    "average_precision": "metrics", "class_activation_maps": "cam", "class_probability": "lpcam", "crf_labels": "crf",
    "detect_instances": "instances", "edge_to_affinity": "affinity", "group_pixels": "instances", "ir_label": "ir_labels",
    "kmeans": "clustering", "lpcam_maps": "lpcam", "mean_direction": "lpcam", "multi_scale_cam": "cam",
    "multi_scale_features": "cam", "pack": "maps", "random_walk": "walk", "rebuild": "maps", "refine_centroids": "instances",
    "mask_of": "refinement", "select_prototypes": "lpcam", "split_cells": "lpcam", "unary_from_labels": "crf",
    "unary_from_scores": "crf", "walk_instances": "instances", "walk_steps": "refinement", "with_background": "refinement",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
