"""The plan of a run: lists, fingerprints, and what each step does and why."""
