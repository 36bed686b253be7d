"""Galleries in and out: how fast one is taken over, and whether what is taken out stays equal under kills."""
