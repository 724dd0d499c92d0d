"""Segmentation networks, trained on masks, and their losses."""
