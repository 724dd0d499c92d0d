"""From activation maps to masks: affinity, random walk, dense CRF, confident labels, instances."""
