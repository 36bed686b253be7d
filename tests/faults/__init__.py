"""A stream hurt on purpose, and an oracle of what it had confirmed: `python -m benchmarks.faults` measures with it."""
