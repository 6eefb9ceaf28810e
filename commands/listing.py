"""``opsin list``."""

from __future__ import annotations

from opsin.config import catalogue


def listing() -> int:
    """Lists every experiment with its claim."""
    found = catalogue.experiments()
    width = max(len(name) for name in found)
    for name, path in found.items():
        print(f"{name:<{width}}  {catalogue.claim(path)}")
    return 0
