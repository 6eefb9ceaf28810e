"""What a host has to do for a chip: JPEGs decoded and cut to squares, images a second a core.

    python -m opsin.benchmarks.host_decoding

Made-up photographs of ImageNet's usual size (500×375, 110 kB or so) go the way that they go in a
run: bytes, Pillow's decoder as TFDS calls it where OpenCV is not installed,
``data.squares.square``. Time is that of the core, so that what else the machine does changes
little. For each plan in ``results/plans`` it writes how many such cores a chip would keep busy, to
``results/host_decoding.md``.
"""

from __future__ import annotations

import argparse
import io
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from PIL import Image

from opsin.commands.provenance import environment
from opsin.data.records import read_record
from opsin.data.squares import square

PLANS = Path("results/plans")
HEIGHT, WIDTH, QUALITY, SIZE = 375, 500, 90, 256


class Prediction(TypedDict):
    """What is needed of the prediction of a plan."""

    images_per_second: float


class Layout(TypedDict):
    """What is needed of the plan itself."""

    mesh: dict[str, int]
    prediction: Prediction | None


class Planned(TypedDict):
    """What is needed of a file of ``opsin plan``."""

    experiment: str
    plan: Layout


@dataclass(frozen=True)
class Rate:
    """Images a second of one core.

    Attributes:
        decode: of the decoder alone.
        whole: of decoding and cutting out.
        bytes: of a file, in the mean.
    """

    decode: float
    whole: float
    bytes: float


def photograph(rng: np.random.Generator) -> bytes:
    """A JPEG of noise with the spectrum of photographs: amplitude ~ 1/f (Field, 1987)."""
    y, x = np.meshgrid(np.fft.fftfreq(HEIGHT), np.fft.fftfreq(WIDTH), indexing="ij")
    amplitude = 1 / np.maximum(np.hypot(y, x), 1 / WIDTH)
    noise = rng.standard_normal((HEIGHT, WIDTH, 3))
    smooth = np.fft.ifft2(np.fft.fft2(noise, axes=(0, 1)) * amplitude[..., None], axes=(0, 1)).real
    shared = smooth.mean(axis=-1, keepdims=True)  # channels go together
    pixels = 0.3 * smooth + shared
    pixels = 128 + 50 * pixels / pixels.std()
    buffer = io.BytesIO()
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def measure(files: Sequence[bytes], rounds: int) -> Rate:
    """The rate over some files, each read as often as there are rounds; the best round counts."""
    decode, whole = [], []
    for _ in range(rounds):
        began = time.process_time()
        images = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
        decoded = time.process_time()
        for image in images:
            square(image, SIZE, SIZE)
        decode.append(decoded - began)
        whole.append(time.process_time() - began)
    return Rate(
        decode=len(files) / min(decode),
        whole=len(files) / min(whole),
        bytes=float(np.mean([len(file) for file in files])),
    )


def table(rate: Rate, plans: Sequence[Path]) -> str:
    """What was measured, and what it means for plans of photographs, as Markdown."""
    processor, _, _ = environment()["hardware"].rpartition(",")
    lines = [
        "# Decoding on the host",
        "",
        f"One core of {processor} decodes {rate.decode:,.0f} JPEGs a second of {WIDTH}x{HEIGHT} "
        f"pixels and {rate.bytes / 1000:.0f} kB, and {rate.whole:,.0f} with the square of {SIZE} "
        f"pixels cut out (Python {platform.python_version()}, Pillow {Image.__version__}).",
        "",
        "    python -m opsin.benchmarks.host_decoding",
        "",
        "So many of these cores keep a chip busy that runs at the speed of its plan, which is the "
        "most it could run at:",
        "",
        "| plan | images/s a chip, at best | cores a chip |",
        "|---|--:|--:|",
    ]
    for path in plans:
        content = read_record(path, Planned, "make it again by opsin plan")
        predicted = content["plan"]["prediction"]
        if not content["experiment"].startswith("imagenet") or predicted is None:
            continue
        chips = int(np.prod(list(content["plan"]["mesh"].values())))
        images = predicted["images_per_second"] / chips
        lines.append(f"| {path.stem} | {images:,.0f} | {images / rate.whole:.1f} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description="images a second that a core decodes")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("results/host_decoding.md"))
    options = parser.parse_args()
    plans = sorted(PLANS.glob("*.json"))
    if not plans:
        parser.error(
            f"no plan in {PLANS}: make one by `opsin plan NAME --topology … --out {PLANS}/…`"
        )
    rng = np.random.default_rng(0)
    files = [photograph(rng) for _ in range(options.images)]
    text = table(measure(files, options.rounds), plans)
    options.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
