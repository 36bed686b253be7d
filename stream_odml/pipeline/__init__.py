"""What is done to shards and tasks, callable without Ray."""
