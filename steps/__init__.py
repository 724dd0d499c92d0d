"""The steps of the pipeline, one file each, with a function `run(context)`. `steps.runtime.context` defines what a step is."""
