"""Image classifiers (a backbone and a head) and their training."""
