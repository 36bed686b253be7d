"""A million test vectors are evaluated within 2 GB: in a process of its own, whose peak the system tells."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import resource
import numpy as np
from stream_odml.learn.evaluation import Retrieval, recall_at_k

random = np.random.default_rng(0)
vectors = random.standard_normal((1_000_000, 128), dtype=np.float32)
labels = np.arange(1_000_000) // 2
vectors[1::2] = vectors[::2] + 0.1  # each has one image of its class, and it is the nearest
some = random.choice(1_000_000, 512, replace=False)
retrieval = Retrieval(vectors[some], labels[some], vectors, labels, some)
assert recall_at_k(retrieval)[1] == 1.0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_a_million_vectors_fit_in_two_gigabytes() -> None:
    peak_mib = float(
        subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    )
    assert 512 < peak_mib < 2000
