"""What answers queries: the HTTP API, its page, and the replica that follows the store."""
