"""Scores of segmentations, of image labels and of instances."""
