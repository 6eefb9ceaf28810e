"""Data sets by name, and two that need no files: handwritten digits and a synthetic set."""

import difflib
import inspect
from dataclasses import replace

import numpy as np

from opsin.data.checks import check_examples, name_of
from opsin.data.examples import (
    PIXEL_MAPS,
    SPLITS,
    Arrays,
    DataError,
    Examples,
    Source,
    materialize,
    require_split,
)
from opsin.data.shapes import shapes
from opsin.data.source_names import FORMS
from opsin.data.tfds_source import tfds
from opsin.ranges import Count, Seed, SetSize


def open_source(source: str | Source, split: str, *, as_stored: bool = False) -> Examples:
    """Opens one split of a data set.

    Args:
        source: "digits", "synthetic", "shapes", "tfds:NAME" (NAME as TFDS has it, with a version if
            wanted), "folder:PATH", "masks:PATH" (images with masks), or a function
            ``split -> Examples``; ``functools.partial`` sets the options of ``synthetic``,
            ``shapes``, ``tfds``, ``folder`` and ``mask_folder``.
        split: such as "train" or "test"; TFDS's slices, such as "train[:80%]", with "tfds:NAME".
        as_stored: leave images of "folder:PATH" and "masks:PATH" in their own sizes, also inside a
            function that takes ``as_stored``.

    Raises:
        DataError: if the source or the split is unknown, the data cannot be read, or they are none
            that a batch could be made of (``data.checks``).
    """
    examples = _opened(source, split, as_stored)
    return check_examples(examples, source if isinstance(source, str) else name_of(source))


def _opened(source: str | Source, split: str, as_stored: bool) -> Examples:
    if callable(source):
        try:
            taken = inspect.signature(source).bind(split).signature.parameters
        except TypeError as error:
            raise DataError(
                f"a source is called with a split alone, and {source} needs more ({error}): "
                "bind its options with functools.partial"
            ) from error
        options = {"as_stored": as_stored} if "as_stored" in taken else {}
        return source(split, **options)
    match source.partition(":"):
        case ("digits", "", ""):
            return digits(split)
        case ("synthetic", "", ""):
            return synthetic(split)
        case ("shapes", "", ""):
            return shapes(split)
        case ("tfds", ":", name) if name:
            return tfds(name, split)
        case ("folder", ":", path) if path:
            # Here, for Pillow is a tenth of what a command takes to answer.
            from opsin.data.folder import folder

            return folder(path, split, size=None) if as_stored else folder(path, split)
        case ("masks", ":", path) if path:
            from opsin.data.mask_folder import mask_folder

            return mask_folder(path, split, mixed=as_stored)
        case (kind, _, name):
            close = difflib.get_close_matches(kind, FORMS, n=1)
            own = f"./{kind.replace('.', '/')}.py:{name}"
            guess = own if name.isidentifier() else f"tfds:{source}"
            nearest = FORMS[close[0]] if close else guess
            raise DataError(
                f'unknown data source "{source}", did you mean "{nearest}"? It is one of '
                f"{', '.join(FORMS.values())}, or a function from a split to Examples, as "
                "package.module:name that Python can import"
            )


def digits(split: str) -> Examples:
    """1,797 handwritten digits that scikit-learn ships, images uint8 [8, 8, 1].

    The split is fixed and stratified: with the digits in order of their label, and otherwise in
    the order of scikit-learn, every fifth one from the first is for testing. That leaves 1,437 in
    "train" and 360 in "test". Grey levels 0 to 16 become 0 to 255, rounded.

    Source: Alpaydin and Kaynak, 1998, Optical Recognition of Handwritten Digits, UCI repository
    (its test set).

    Raises:
        DataError: if ``split`` is neither "train" nor "test".
    """
    require_split("digits", split)
    # Imported where it is used: it takes a second, and other sources do not need it.
    from sklearn.datasets import load_digits

    flat, target = load_digits(return_X_y=True)
    is_test = np.zeros(len(target), bool)
    is_test[np.argsort(target, kind="stable")[::5]] = True
    chosen = is_test if split == "test" else ~is_test
    image = np.round(flat[chosen] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    label = target[chosen].astype(np.int32)
    return Examples(Arrays({"image": image, "label": label}), tuple(map(str, range(10))))


def synthetic(
    split: str,
    *,
    n: SetSize = 1024,
    size: Count = 32,
    channels: Count = 3,
    classes: Count = 10,
    seed: Seed = 0,
) -> Examples:
    """A set that any classifier learns in seconds: striped images, for tests and dry runs.

    Example i has label i mod ``classes``. The label sets the direction of the stripes (three
    periods an image) and the tint; their phase varies by ±45 degrees, and Gaussian noise with a
    standard deviation of a tenth of the range lies over them. Directions stay within a quarter
    turn, so a flipped image keeps a label of its own. Example i does not depend on ``n``.

    Args:
        split: "train" or "test", independent draws of ``n`` examples each.
        n: number of examples.
        size: height and width, in pixels.
        channels: number of channels.
        classes: number of classes.
        seed: of the phases and of the noise, at least 0.

    Raises:
        DataError: if ``split`` is neither "train" nor "test".
    """
    require_split("synthetic", split)
    phase_rng, noise_rng = np.random.default_rng([seed, SPLITS.index(split)]).spawn(2)
    label = np.arange(n, dtype=np.int32) % classes
    angle = (label + 0.5)[:, None, None] / classes * (np.pi / 2)
    phase = phase_rng.uniform(-np.pi / 4, np.pi / 4, (n, 1, 1))
    y, x = np.mgrid[-0.5 : 0.5 : size * 1j, -0.5 : 0.5 : size * 1j]
    wave = np.cos(6 * np.pi * (np.cos(angle) * x + np.sin(angle) * y) + phase)  # [n, size, size]
    hue = label[:, None] / classes + np.arange(channels) / 3
    tint = 0.65 + 0.35 * np.cos(2 * np.pi * hue)[:, None, None]  # [n, 1, 1, channels]
    noise = noise_rng.standard_normal((n, size, size, channels), np.float32)
    bright = 0.5 + 0.3 * wave[..., None] * tint + 0.1 * noise
    image = np.round(255 * np.clip(bright, 0, 1)).astype(np.uint8)
    names = tuple(f"stripes {index}" for index in range(classes))
    return Examples(Arrays({"image": image, "label": label}), names)


def blank(count: SetSize, *, image: tuple[Count, Count, Count]) -> Examples:
    """Examples of zeros that replace a set that is not here, in a plan: its number and shapes.

    They take no memory, whatever their number.

    Args:
        count: number of examples.
        image: height, width and channels.
    """
    return Examples(
        Arrays(
            {
                "image": np.broadcast_to(np.uint8(0), (count, *image)),
                "label": np.broadcast_to(np.int32(0), (count,)),
            }
        )
    )


def shrunk(split: str, *, source: str | Source, factor: Count) -> Examples:
    """A set with smaller images: each pixel is the mean of ``factor`` × ``factor`` pixels.

    Masks, and weights of their pixels, are made smaller too, by taking the nearest pixel: that
    below and right of the middle where ``factor`` is even.

    Args:
        split: of the source.
        source: what to shrink, as for ``open_source``.
        factor: must divide height and width.

    Raises:
        DataError: if it does not, or the source cannot be opened.
    """
    examples = open_source(source, split)
    arrays = materialize(examples)
    count, height, width, channels = arrays["image"].shape
    if height % factor or width % factor:
        raise DataError(f"factor={factor} does not divide images of {height}x{width} pixels")
    shape = (count, height // factor, factor, width // factor, factor, channels)
    image = np.round(arrays["image"].reshape(shape).mean(axis=(2, 4))).astype(np.uint8)
    middle = slice(factor // 2, None, factor)
    maps = {name: arrays[name][:, middle, middle] for name in PIXEL_MAPS if name in arrays}
    return replace(examples, records=Arrays(arrays | maps | {"image": image}))
