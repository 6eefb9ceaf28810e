"""The order of the examples, and batches in that order.

Training has one order, set by the seed alone. ``train_indices`` gives it to a loop that keeps the
data on the device; ``train_batches`` reads the same examples from a source. Neither depends on the
number of processes: each process gets its slice of the same global batches.
"""

import os
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import grain
import numpy as np

from opsin.data.examples import Arrays, DataError, Examples, stack


def train_indices(
    n: int,
    *,
    batch: int,
    seed: int,
    distinct: bool = False,
    passes: int = 1,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator[np.ndarray]:
    """Endless batches of shuffled indices into a training split.

    Every epoch visits every example once in an order of its own. Batches run across the end of an
    epoch, so none is short and nothing is dropped; a batch may be larger than the split.

    Args:
        n: number of examples.
        batch: global batch size, over all processes.
        seed: of the order, from 0 to 2**32 - 1.
        distinct: whether no batch may hold an example twice. Each epoch then leaves out the last
            ``n % batch`` examples of its order.
        passes: parts of the split, which an epoch visits one after the other: all of the first
            ``n / passes`` examples before any other.
        process_index: which slice of each global batch to give.
        process_count: number of slices.

    Returns:
        An iterator over int32 [batch / process_count]. Its ``get_state()`` is a dict that JSON can
        hold, the number of batches taken; ``set_state(state)`` continues from there, exactly.

    Raises:
        DataError: if the split is empty, the batch is below 1 or does not divide, the seed is out
            of range, or distinct examples are fewer than the batch.
    """
    order = _order(n, batch, seed, distinct, passes, process_index, process_count)
    # No threads: it is arithmetic, which Python's threads would only slow down.
    return iter(order.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def train_batches(
    examples: Examples,
    *,
    batch: int,
    seed: int,
    distinct: bool = False,
    passes: int = 1,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator[dict[str, np.ndarray]]:
    """Endless shuffled batches, read ahead by threads, in the order of ``train_indices``.

    Args:
        examples: the training split.
        batch: global batch size, over all processes.
        seed: of the order, from 0 to 2**32 - 1.
        distinct: whether no batch may hold an example twice.
        passes: parts of the split, which an epoch visits one after the other.
        process_index: which slice of each global batch to give.
        process_count: number of slices.

    Returns:
        An iterator over dicts such as ``image`` uint8 [batch / process_count, height, width,
        channels] and ``label`` int32 [batch / process_count], with the states of ``train_indices``.

    Raises:
        DataError: as ``train_indices``; while iterating, if an example cannot be read or differs in
            shape.
    """
    count, classes = len(examples.records), len(examples.class_names)
    order = _order(count, batch, seed, distinct, passes, process_index, process_count)
    read = partial(stack, examples.records, classes=classes)
    return iter(order.map(read).to_iter_dataset(_read_ahead()))


def eval_batches(
    examples: Examples | Mapping[str, np.ndarray],
    *,
    batch: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Every example once, in order, in batches of one shape.

    What the last batch lacks is filled with the first example, so that padding is as well-behaved
    as data, and marked False in ``valid``.

    Args:
        examples: a split, or its arrays as ``materialize`` gives them.
        batch: global batch size, over all processes.
        process_index: which slice of each global batch to give.
        process_count: number of slices; every process gets the same number of batches.

    Returns:
        An iterator over dicts as those of ``train_batches``, and ``valid``, bool
        [batch / process_count].

    Raises:
        DataError: as ``train_batches``.
    """
    whole = examples if isinstance(examples, Examples) else Examples(Arrays(examples))
    records, classes = whole.records, len(whole.class_names)
    n = len(records)
    local = _local_batch(n, batch, process_index, process_count)

    def load(start: int) -> dict[str, np.ndarray]:
        indices = np.arange(start, start + local)
        valid = indices < n
        read = stack(records, np.where(valid, indices, 0), classes=classes)
        return read | {"valid": valid}

    starts = grain.MapDataset.range(process_index * local, _round_up(n, batch), batch)
    return iter(starts.map(load).to_iter_dataset(_read_ahead()))


def _order(
    n: int,
    batch: int,
    seed: int,
    distinct: bool,
    passes: int,
    process_index: int,
    process_count: int,
) -> grain.MapDataset[np.ndarray]:
    local = _local_batch(n, batch, process_index, process_count)
    if not 0 <= seed < 2**32:
        raise DataError(f"seed={seed}; use 0 to {2**32 - 1}")
    part = n // passes
    shuffled = grain.MapDataset.range(part).seed(seed).shuffle().repeat()
    if passes > 1:
        parts: Any = shuffled
        places = grain.MapDataset.range(len(parts))
        shuffled = places.map(lambda place: parts[place] + place // part % passes * part)
    if distinct and part % batch:
        if part < batch:
            raise DataError(
                f"data.batch={batch} of {part} examples would hold one twice: set data.batch to "
                f"{part} or less"
            )
        used, epochs = part - part % batch, shuffled
        places = grain.MapDataset.range(len(epochs) // part * used)
        shuffled = places.map(lambda place: epochs[place // used * part + place % used])
    # Endless, so it has no remainder to drop; without the flag grain's length overflows at batch 1.
    slices = shuffled.batch(
        local, drop_remainder=True, batch_fn=partial(np.asarray, dtype=np.int32)
    )
    # Slices follow each other in the one order: global batch 0, process 0, 1, …; global batch 1, …
    return slices[process_index::process_count]


def _local_batch(n: int, batch: int, process_index: int, process_count: int) -> int:
    if n < 1:
        raise DataError("this split has no examples; choose another one")
    if batch < 1:
        raise DataError(f"batch={batch}; use at least 1")
    if batch % process_count:
        raise DataError(
            f"batch={batch} does not divide among {process_count} processes; "
            f"use {_round_up(batch, process_count)}"
        )
    if not 0 <= process_index < process_count:
        raise DataError(f"process_index={process_index} is not one of {process_count} processes")
    return batch // process_count


def _round_up(n: int, step: int) -> int:
    return -(-n // step) * step


def _read_ahead() -> grain.ReadOptions:
    threads = min(16, os.cpu_count() or 1)  # each reads one batch at a time
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
