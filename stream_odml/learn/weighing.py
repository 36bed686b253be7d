"""How much each discriminant direction counts.

The directions of a discriminant are found without saying what each is worth. Two models say it, for no byte more:

`ridge`: what ridge regression onto classes makes of them. Where class means differ far more along a direction than
images of a class do, it counts for less, so that none drowns the others (penalised discriminant analysis, Hastie, Buja
& Tibshirani, Annals of Statistics 1995). Tells fewer classes than dimensions best.
`posterior`: the share of an item's place that its class explains (probabilistic discriminant analysis, Ioffe, ECCV
2006). Tells more classes than dimensions better, where no random features stand beside these.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from stream_odml.learn.lift import Float64s

Weighing = Literal["ridge", "posterior", "equal"]


def direction_weights(kind: Weighing, between_k: Float64s, unit: float) -> Float64s:
    """Return weights [k] of k directions, the largest 1: sqrt(v) / (1 + v) of `ridge`, v / (1 + v) of `posterior`.

    `between_k` times `unit` is v, the variance of class means along a direction, that within classes and the ridge
    together being 1; above 0. As if the ridge were all, where the unit is 0: sqrt(v) and v.
    """
    if kind == "equal":
        return np.ones(len(between_k))
    weight_k: Float64s = between_k / (1 + unit * between_k)
    if kind == "ridge":
        weight_k /= np.sqrt(between_k)
    weight_k /= weight_k.max(initial=0)
    return weight_k
