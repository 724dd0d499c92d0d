"""What several steps and actions share: prototypes, thresholds, walks, instances, imported results."""
