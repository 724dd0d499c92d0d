"""Image classifiers: a backbone and a head, and what trains them."""
