"""Bytes, seconds and other amounts as people read them."""

from __future__ import annotations


def in_bytes(count: float | None) -> str:
    """Bytes in binary units, as memory is sold: ``15.75 GiB``."""
    value, unit = float(count or 0), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"


def in_units(count: float, unit: str) -> str:
    """A number with a decimal prefix: ``197 TFLOP/s``."""
    prefix = ""
    for larger in ("k", "M", "G", "T", "P"):
        if count < 1000:
            break
        count, prefix = count / 1000, larger
    return f"{count:.3g} {prefix}{unit}"


def in_seconds(seconds: float | None) -> str:
    """Seconds with a decimal prefix: ``47.2 ms``; "unknown" for None."""
    if seconds is None:
        return "unknown"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} µs"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
