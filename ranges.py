"""What a number may be, said where its field is declared.

``learning_rate: NonNegative = 1e-3`` is held to it wherever a config is overridden or read
(``config/hints.py``), so that a wrong number is refused before anything is allocated. A fraction
without a range is one of -``LARGEST`` to ``LARGEST``.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval

LARGEST = 1e30
"""Of a fraction: float32, in which all is computed, ends at 3e38, and 1 over it at 1e-38."""

Positive = Annotated[float, Interval(ge=1e-30, le=LARGEST)]
"""Above 0."""

NonNegative = Annotated[float, Interval(ge=0, le=LARGEST)]
"""0 or more."""

Unbounded = Annotated[float, Interval(ge=0)]
"""0 or more, infinity too."""

Probability = Annotated[float, Interval(ge=0, le=1)]
"""0 to 1: also a share of a whole."""

Part = Annotated[float, Interval(gt=0, lt=1)]
"""Above 0 and below 1: of a set that is divided in two."""

Share = Annotated[float, Interval(gt=0, le=1)]
"""Above 0 to 1: what is left of a whole."""

BelowOne = Annotated[float, Interval(ge=0, lt=1)]
"""0 to 1, without 1: of what must leave something, such as dropout or momentum."""

Count = Annotated[int, Interval(ge=1, le=1_000_000)]
"""Of what is in memory together, such as images, channels or pixels of a side."""

CountOrZero = Annotated[int, Interval(ge=0, le=1_000_000)]
"""As ``Count``, with 0. Also a class, counted from 0."""

SetSize = Annotated[int, Interval(ge=1, le=2**31 - 1)]
"""Of the examples of a set, or of those that are drawn of it."""

Bytes = Annotated[int, Interval(ge=0, le=2**50)]
"""In memory: up to a pebibyte."""

Label = Annotated[int, Interval(ge=-(2**31), le=2**31 - 1)]
"""A number of int32, as labels are: it need not be that of a class."""

Depth = Annotated[int, Interval(ge=1, le=1000)]
"""Of what a program writes out one after the other, such as layers: it must be traced."""

DepthOrZero = Annotated[int, Interval(ge=0, le=1000)]
"""As ``Depth``, with 0."""

Steps = Annotated[int, Interval(ge=1, le=2**31 - 1)]
"""Of what comes one after the other."""

StepsOrZero = Annotated[int, Interval(ge=0, le=2**31 - 1)]
"""As ``Steps``, with 0. Also bytes in megabytes."""

Seed = Annotated[int, Interval(ge=0, le=2**32 - 1)]
"""Of a random number generator."""

Devices = Annotated[int, Interval(ge=-1, le=1_000_000)]
"""Along an axis of a mesh, 1 or more; -1 takes all that are left."""
