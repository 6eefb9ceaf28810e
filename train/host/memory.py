"""What glibc does with memory that XLA frees on a CPU."""

from __future__ import annotations

import ctypes
import os


def is_untuned() -> bool:
    """Whether the user has set none of glibc's own variables."""
    return not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)


def keep_freed_memory() -> None:
    """Makes glibc keep the memory that XLA frees.

    On a CPU XLA allocates the temporaries of a step anew each time. glibc gives blocks of that size
    back to the kernel, which clears every page before the next step gets it: up to a third of a
    step. The process then holds on to the memory that it has used.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # macOS, musl
        return
    m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8  # malloc.h
    mallopt(m_mmap_max, 0)  # large blocks from the heap, not from mmap
    mallopt(m_trim_threshold, 2**31 - 1)  # which is not given back
    mallopt(m_arena_max, 1)  # and is one for all threads: XLA allocates in its own
