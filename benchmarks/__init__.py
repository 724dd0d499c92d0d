"""Side-by-side measurements, each runnable by one command."""

import pipeline  # noqa: F401  sets variables before torch is imported
