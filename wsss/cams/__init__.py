"""Activation maps: their computation from a network's features, and their stored form."""

SCALES = (1.0, 0.5, 1.5, 2.0)  # IRN run_sample.py, cam_scales
