"""The classes of ImageNet (ILSVRC 2012), for networks that were trained on them elsewhere."""

from functools import cache
from pathlib import Path

_NAMES = Path(__file__).parent / "imagenet_classes.txt"


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The names of the 1,000 classes, in the order of their WordNet ids, as networks number them.

    Each is the first word for it in WordNet 3.0, and the two that mean two things say which:
    ``crane (bird)``, ``crane (machine)``.
    """
    return tuple(_NAMES.read_text(encoding="utf-8").splitlines())
