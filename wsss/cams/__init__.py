"""Activation maps: their computation from a network's features, and their stored form."""
