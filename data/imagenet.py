"""The classes of ImageNet (ILSVRC 2012), for networks that were trained on them elsewhere."""

from pathlib import Path

_NAMES = Path(__file__).parent / "imagenet_classes.txt"


def imagenet_classes() -> tuple[str, ...]:
    """The names of the 1,000 classes, in the order of their WordNet ids, as networks number them.

    Each is the first word for it in WordNet; where two classes have the same word, it says which:
    ``crane (bird)``, ``crane (machine)``.
    """
    return tuple(_NAMES.read_text(encoding="utf-8").splitlines())
