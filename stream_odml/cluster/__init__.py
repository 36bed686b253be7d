"""Where it runs: driver, trainer, indexer, service, metrics. The only package that imports Ray."""
