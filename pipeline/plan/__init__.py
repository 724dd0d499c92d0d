"""What a run would do, and why: lists, fingerprints, the plan."""
