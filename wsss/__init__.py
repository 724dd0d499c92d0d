"""The science of weakly supervised semantic segmentation on plain arrays and tensors, without configuration."""

import importlib
from typing import Any

# The module of each public name. It is imported on first access, because torch takes seconds to import and users of
# `wsss.errors` or `wsss.data` do not need it. No module may have one of these names.
_NAMES = {
    "cams.backprop": ["Backprop"],
    "cams.cam": ["class_activation_maps", "multi_scale_cam", "multi_scale_features"],
    "cams.clustering": ["kmeans"],
    "cams.eigencam": ["EigenCAM"],
    "cams.gradcam": ["GradCAM"],
    "cams.gradcam_pp": ["GradCAMpp"],
    "cams.guided_backprop": ["GuidedBackprop"],
    "cams.guided_gradcam": ["GuidedGradCAM"],
    "cams.hirescam": ["HiResCAM"],
    "cams.iscam": ["ISCAM"],
    "cams.layercam": ["LayerCAM"],
    "cams.legrad": ["LeGrad"],
    "cams.lpcam": ["class_probability", "lpcam_maps", "mean_direction", "select_prototypes", "split_cells"],
    "cams.maps": ["pack", "rebuild"],
    "cams.mctformer": ["MCTformerMaps"],
    "cams.occlusion": ["Occlusion"],
    "cams.rollout": ["AttentionRollout"],
    "cams.scorecam": ["ScoreCAM"],
    "cams.separation": ["Separation"],
    "cams.signed_cam": ["SignedCAM"],
    "cams.smooth_gradcam_pp": ["SmoothGradCAMpp"],
    "cams.sscam": ["SSCAM"],
    "cams.xgradcam": ["XGradCAM"],
    "metrics.boxes": ["boxes_above", "component_boxes", "contour_boxes", "dt_boxes"],
    "metrics.localisation": ["BoxAccuracy", "PixelPrecision"],
    "metrics.instances": ["CocoPrecision", "InstancePrecision"],
    "metrics.semantic": ["Confusion", "ThresholdCounts", "average_precision"],
    "refinement.affinity": ["affinity_losses", "edge_to_affinity"],
    "refinement.crf": ["DenseCRF", "crf_labels", "unary_from_labels", "unary_from_scores"],
    "refinement.feature_affinity": ["feature_affinity", "feature_affinity_losses"],
    "refinement.instances": ["Detections", "detect_instances", "group_pixels", "refine_centroids", "walk_instances"],
    "refinement.ir_label": ["ir_label"],
    "refinement.masks": ["mask_of", "walk_steps", "with_background"],
    "refinement.proposals": ["vote_of_proposals"],
    "refinement.psa_label": ["psa_label"],
    "refinement.walk": ["affinity_walk", "random_walk"],
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
