"""How fast and how exactly what lands becomes searchable: `python -m benchmarks.ingest`."""
