"""A law of cost: a sum of terms in the sizes, fitted on small measured points and judged by larger ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import nnls

Sizes = Mapping[str, float]


@dataclass
class Law:
    """`terms` of the sizes; their factors are never negative. Points with `check` are predicted, not fitted."""

    name: str
    unit: str
    terms: Callable[[Sizes], list[float]]
    points: list[tuple[Sizes, float, bool]] = field(default_factory=list)
    """(sizes, measured, whether it checks)"""

    def point(self, measured: float, check: bool = False, **sizes: float) -> None:
        """Add a measured point."""
        self.points.append((sizes, measured, check))

    @property
    def factors(self) -> list[float]:
        """Least squares of the relative error over the points that do not check."""
        fitted = [(self.terms(sizes), measured) for sizes, measured, check in self.points if not check]
        rows = np.array([np.array(terms) / measured for terms, measured in fitted])
        return [float(x) for x in nnls(rows, np.ones(len(rows)))[0]]

    def at(self, **sizes: float) -> float:
        """What the law says of these sizes."""
        return float(np.dot(self.factors, self.terms(sizes)))

    def errors(self) -> list[tuple[Sizes, float, float, float]]:
        """(sizes, measured, predicted, relative error) of the points that check."""
        checks = [(sizes, measured) for sizes, measured, check in self.points if check]
        found = []
        for sizes, measured in checks:
            said = self.at(**sizes)
            found.append((sizes, measured, said, abs(said - measured) / measured))
        return found
