"""How much each discriminant direction counts, by how far class means differ along it.

The directions of a discriminant are found without saying what each is worth. Two models say it, for no byte more:

`ridge`: what ridge regression onto classes makes of them: products of items are those of their class scores (penalised
discriminant analysis, Hastie, Buja & Tibshirani, Annals of Statistics 1995). Tells fewer classes than dimensions best.
`posterior`: the share of an item's place that its class explains (probabilistic discriminant analysis, Ioffe, ECCV
2006). Tells more classes than dimensions better, where no random features stand beside these.
"""

# k directions

from __future__ import annotations

from typing import Literal

import numpy as np

from stream_odml.learn.lift import Float64s

Weighing = Literal["ridge", "posterior", "equal"]


def direction_weights(kind: Weighing, between_k: Float64s, unit: float) -> Float64s:
    """Return weights [k], the largest 1: sqrt(v) / (1 + v) of `ridge`, v / (1 + v) of `posterior`, where `unit` times
    `between_k` is v, the variance of class means along a direction beside that within classes and the ridge. As if the
    ridge were all, where the unit is 0: sqrt(v) and v."""
    if kind == "equal":
        return np.ones(len(between_k))
    weight_k: Float64s = (np.sqrt(between_k) if kind == "ridge" else between_k) / (1 + unit * between_k)
    weight_k /= weight_k.max(initial=0)
    return weight_k
