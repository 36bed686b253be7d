"""Faults on purpose against a real stream, measured: `python -m benchmarks.faults`."""
