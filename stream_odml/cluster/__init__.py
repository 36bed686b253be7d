"""Where it runs: driver, trainer, indexer, service, metrics. The only room that imports Ray."""
