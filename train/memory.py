"""What a process on a CPU does with the memory that it frees, where its C library is glibc."""

from __future__ import annotations

import ctypes
import mmap
import os

LEAST_HOLE = 4 * mmap.PAGESIZE
"""Bytes: of those, at least three quarters are whole pages; smaller ones stay in use."""


def is_untuned() -> bool:
    """Whether the user has set none of glibc's own variables, and leaves its memory to us."""
    return not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)


def keep_freed_memory() -> None:
    """Has the C library keep what XLA frees.

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


def set_holes_aside() -> int:
    """Takes the holes that a compilation left in the heap out of use; their pages go to the kernel.

    XLA's compiler leaves thousands of free blocks, each of another size. glibc keeps them in lists
    sorted by size and walks one, under the lock that all threads share, whenever a convolution
    frees its workspace, so that a program runs slower in the process that compiled it than in one
    that took it from the cache. The holes are allocated here, for good.

    Returns:
        Bytes set aside; 0 where the C library is not glibc 2.33 or later.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallinfo, madvise = libc.mallinfo2, libc.madvise
    except (OSError, AttributeError):
        return 0
    address, length, mallinfo.restype = ctypes.c_void_p, ctypes.c_size_t, _Mallinfo
    libc.malloc.restype, libc.malloc.argtypes = address, [length]
    libc.sbrk.restype, libc.sbrk.argtypes = address, [ctypes.c_ssize_t]
    libc.free.argtypes, madvise.argtypes = [address], [address, length, ctypes.c_int]
    info, page = mallinfo(), mmap.PAGESIZE
    top = libc.sbrk(0) - info.keepcost  # of the heap: what is allocated from here on was no hole
    holes = info.fordblks - info.keepcost
    aside, size = 0, 1 << max(holes.bit_length() - 1, 0)
    while size >= LEAST_HOLE:
        block = libc.malloc(size)
        if block is None or block >= top or aside + size > holes:
            libc.free(block)
            size //= 2
            continue
        aside += size
        first, last = -(-block // page) * page, (block + size) // page * page
        if first < last:
            madvise(first, last - first, mmap.MADV_DONTNEED)
    return aside


class _Mallinfo(ctypes.Structure):
    """``struct mallinfo2`` of malloc.h, in bytes."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks"),
            *("uordblks", "fordblks", "keepcost"),
        )
    ]
