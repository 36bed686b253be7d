"""What arrives: shards, their formats, sources, decoding, task boundaries, batches."""
