"""What is kept: the tables of a stream root, their one writer, versions and the maps between them."""
