"""The tests mirror the rooms: wsss, steps, pipeline."""

import pipeline  # noqa: F401  sets what must be set before torch is imported
