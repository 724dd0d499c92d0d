"""Activation maps: how each is computed from a network's features, and the form that they are stored in."""
