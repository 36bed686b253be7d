"""The position of a reader: how many rows of the ledger and of the versions it has taken in, as one number.

Protects: "at least as far" is asked of both counters. Readers take the two tables in one after the other, so one may be
ahead in the first and another in the second: neither has then seen all that the other has.
"""

TREE_BITS = 24
"""Room for 16 million rows of `versions`; 29 bits are left for the ledger in a number that JSON keeps exactly."""
_TREE = (1 << TREE_BITS) - 1


def sequence_of(ledger_seq: int, tree_seq: int) -> int:
    """Return the number of a reader that saw the ledger up to `ledger_seq` and the versions up to `tree_seq`.

    It grows with every commit that a reader takes in. Of two readers the larger need not have seen all that the
    smaller has: compare by `has_reached`.
    """
    return (ledger_seq + 1) << TREE_BITS | min(tree_seq + 1, _TREE)


def has_reached(seen: int, asked: int) -> bool:
    """Return whether a reader at `seen` has taken in every commit that one at `asked` had."""
    return seen >> TREE_BITS >= asked >> TREE_BITS and seen & _TREE >= asked & _TREE
