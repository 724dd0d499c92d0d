"""Backbones: the networks that compute features."""
