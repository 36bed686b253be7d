"""One thread: tiny tensors are slower on more, and workers of a test run share the cores."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
