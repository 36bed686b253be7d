"""What is found: the searchable snapshot of the gallery, its filters and its indexes."""
