"""What each step does. One file a step, one verb, one `run(context)`; see `steps.runtime.context` for what a step is."""
