"""The search service, measured: against plain servers, over swaps, beside training, under hostile requests."""
