"""Backbones: the networks whose features everything else is built on."""
