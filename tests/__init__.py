"""Tests of the packages wsss, steps and pipeline, in folders of the same names."""

import pipeline  # noqa: F401  sets variables before torch is imported
