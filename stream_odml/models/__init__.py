"""The model of a version: loaded, and checked with the canaries that were stored beside it."""
