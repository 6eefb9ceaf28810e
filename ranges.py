"""What a number may be, said where its field is declared.

``learning_rate: NonNegative = 1e-3`` is held to it wherever a config is overridden or read
(``config/hints.py``), so that a wrong number is refused before anything is allocated. A number
without a range must be finite.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval

INFINITY = float("inf")
MILLION = 1_000_000

Positive = Annotated[float, Interval(gt=0, lt=INFINITY)]
"""Above 0."""

NonNegative = Annotated[float, Interval(ge=0, lt=INFINITY)]
"""0 or more."""

Unbounded = Annotated[float, Interval(ge=0)]
"""0 or more, infinity too."""

Share = Annotated[float, Interval(ge=0, le=1)]
"""Of a whole, or a probability."""

Proper = Annotated[float, Interval(ge=0, lt=1)]
"""A share that leaves something: of dropout, of momentum, of smoothing."""

Count = Annotated[int, Interval(ge=1, le=MILLION)]
"""Of what is in memory together, such as images, channels or layers: 1 to a million."""

Whole = Annotated[int, Interval(ge=0, le=MILLION)]
"""As ``Count``, with 0."""

Many = Annotated[int, Interval(ge=1, lt=2**31)]
"""Of what comes one after the other, such as steps."""

Seed = Annotated[int, Interval(ge=0, lt=2**32)]
"""Of a random number generator."""
