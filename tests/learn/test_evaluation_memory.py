"""Evaluation never holds all queries by all vectors: in a process of its own, whose peak the system tells."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import numpy as np
from stream_odml.learn.evaluation import Retrieval, recall_at_k
from tests.memory import peak_mib

N, Q = 1 << 17, 1 << 10  # all by all: 512 MiB
before = peak_mib()
random = np.random.default_rng(0)
vectors = random.standard_normal((N, 64), dtype=np.float32)
labels = np.arange(N) // 2
vectors[1::2] = vectors[::2] + 0.1  # each has one image of its class, and it is the nearest
some = random.choice(N, Q, replace=False)
retrieval = Retrieval(vectors[some], labels[some], vectors, labels, some)
assert recall_at_k(retrieval)[1] == 1.0
print(peak_mib() - before)
"""


def test_all_similarities_are_never_held_at_once() -> None:
    peak_mib = float(
        subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    )
    assert 32 < peak_mib < 450
