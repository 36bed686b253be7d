"""How far it goes: laws fitted on small runs, held against larger ones, and asked for the first wall."""
