"""Faults of every kind, on purpose, and an oracle of what was confirmed: none missing, phantom or twice."""
