"""What is kept: the store, vectors and their spaces, searchers."""
