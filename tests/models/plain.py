"""Layers of a network written out in NumPy, for one image [height, width, channels]."""

from collections.abc import Mapping

import numpy as np
from scipy.signal import correlate


def conv(
    x: np.ndarray,
    params: Mapping[str, np.ndarray],
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> np.ndarray:
    """A convolution, with the bias if ``params`` have one."""
    kernel = params["kernel"]
    x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
    width = kernel.shape[-1] // groups
    maps = [
        correlate(part, kernel[..., group * width + index], "valid")[..., 0]
        for group, part in enumerate(np.split(x, groups, axis=-1))
        for index in range(width)
    ]
    return np.stack(maps, -1)[::stride, ::stride] + params.get("bias", 0)


def batch_norm(
    x: np.ndarray,
    params: Mapping[str, np.ndarray],
    statistics: Mapping[str, np.ndarray],
    epsilon: float = 1e-5,
) -> np.ndarray:
    """With the running statistics."""
    x = (x - statistics["mean"]) / np.sqrt(statistics["var"] + epsilon)
    return x * params["scale"] + params["bias"]


def pool(x: np.ndarray, side: int, stride: int, *, ceil: bool = False, reduce=np.max) -> np.ndarray:
    """Over windows that lie inside the image, or, with ``ceil``, end with it."""
    counts = [(n - side) / stride for n in x.shape[:2]]
    rows, columns = (int(np.ceil(n) if ceil else np.floor(n)) + 1 for n in counts)
    return np.array(
        [
            [
                reduce(x[i : i + side, j : j + side], axis=(0, 1))
                for j in range(0, columns * stride, stride)
            ]
            for i in range(0, rows * stride, stride)
        ]
    )


def response_norm(x: np.ndarray) -> np.ndarray:
    """Over the squares of five channels, with the constants of AlexNet."""
    squares = np.square(np.pad(x.astype(np.float64), ((0, 0), (0, 0), (2, 2))))
    sums = sum(squares[..., i : i + x.shape[-1]] for i in range(5))
    return x / (2 + 1e-4 * sums) ** 0.75


def dense(x: np.ndarray, params: Mapping[str, np.ndarray]) -> np.ndarray:
    """A linear layer, of kernels of any shape that begins with that of ``x``."""
    return np.tensordot(x, params["kernel"], x.ndim) + params["bias"]
