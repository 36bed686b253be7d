"""Galleries of other stores, taken over, and ours, given to them and kept in step there."""
