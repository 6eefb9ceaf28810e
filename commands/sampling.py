"""Images from a finished run: a picture to look at, and the arrays themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from opsin.analysis.sampling import check_labels, sample_images
from opsin.commands.groups import Images
from opsin.commands.runs import RunError
from opsin.commands.trained import Trained, open_run
from opsin.config.tree import resolve
from opsin.data.files import check_new, replacing, writing
from opsin.data.images import opened, read_image
from opsin.ops.diffusion.langevin import LANGEVIN, PREDICTOR_CORRECTOR
from opsin.ops.diffusion.samplers import ANCESTRAL, DDIM, DPM_SOLVER, HEUN, Sampler
from opsin.ops.keys import row_keys
from opsin.pictures import figures
from opsin.train.compiler import jit_here
from opsin.train.settings import SettingError
from opsin.train.tasks.generative import Generative

NO_IMAGES = (
    "there are no images to make with {}: give a run of a generator, such as mnist_ddpm, "
    "or predict labels and masks with opsin predict"
)
ELSEWHERE = "choose another directory with --output"
FRAMES, SECONDS = 50, 4.0
"""Of an animation, at most."""

SAMPLERS: dict[str, Sampler] = {
    "ancestral": ANCESTRAL,
    "ddim": DDIM,
    "dpm++2m": DPM_SOLVER,
    "heun": HEUN,
    "langevin": LANGEVIN,
    "predictor-corrector": PREDICTOR_CORRECTOR,
}


def sample(
    run: Path, count: int, asked: Images, *, path: bool, output: Path, allow: Sequence[str] = ()
) -> list[Path]:
    """Writes ``samples.png``, a grid, and ``samples.npz``; with ``path`` also ``path.gif``.

    The arrays are ``image`` uint8 [count, height, width, channels], ``label`` int32 [count] where
    the model takes classes (all in turn, unless one is requested), ``seed``, ``step``, and
    ``made``, JSON that says how. Image i of a seed is the same whatever ``count`` is. The animation
    shows the first 16, from noise on. For ``allow`` see ``open_run``.

    Raises:
        RunError: if the run makes no images, not in this way, or the directory cannot be written.
        SettingError: if the model does not know the requested class, or cannot make images in the
            requested way.
        WriteError: a file of one of these names is there.
    """
    names = ("samples.png", "samples.npz", *(("path.gif",) if path else ()))
    check_new(output / name for name in names)
    trained, task = _open(run, asked, allow)
    labels = _labels(task, count, asked)
    shown = min(count, 16)  # all steps of an image are in memory
    few = None if labels is None else jnp.asarray(labels[:shown])
    with _about(run):  # before the images: not every model has a path
        made = (
            _path(trained, task, row_keys(jax.random.key(asked.seed), shown), few) if path else None
        )
    images = sample_images(
        task, trained.params, trained.mutable, count, seed=asked.seed, labels=labels
    )
    arrays = _how(run, trained, task.sampling, asked)
    if labels is not None:
        arrays["label"] = labels
    rows = partial(_rows, classes=None if asked.label is not None else task.num_classes)
    written = _write(images, arrays, rows, output / "samples")
    if made is not None:
        written.append(_animate([rows(frame) for frame in made], output / "path.gif"))
    return written


def inpaint(
    run: Path,
    image: Path,
    mask: Path,
    count: int,
    asked: Images,
    *,
    resamplings: int,
    output: Path,
    allow: Sequence[str] = (),
) -> list[Path]:
    """Writes ``inpainted.png``, the image, its known part and completed versions.

    If the run's own sampler depends on the step before, 100 steps of DDPM (or as many as the
    schedule has) take its place, unless another is requested. ``inpainted.npz`` has ``image`` uint8
    [count, height, width, channels].

    Args:
        run: of a diffusion model.
        image: the file of an image; what the mask leaves is known.
        mask: an image of the same size, white (at least half) where it is to be filled in.
        count: number of versions.
        asked: which images are wanted, and how they are made.
        resamplings: how often each step is done; see ``ops.diffusion.inpainting``.
        output: directory.
        allow: see ``open_run``.

    Raises:
        RunError: if the run has no diffusion model, the images have another size than it makes, the
            mask leaves nothing to do, or the directory cannot be written.
        DataError: for a file that is no image.
        SettingError, WriteError: as ``sample``.
    """
    check_new(output / name for name in ("inpainted.png", "inpainted.npz"))
    if asked.label is None and asked.guidance is not None:
        raise RunError("--guidance needs a class: give one with --class, or leave it out")
    trained, task = _open(run, asked, allow)
    with _about(run):
        inpainter = task.inpainter(
            resamplings,
            steps=asked.steps,
            keep_sampler=asked.sampler is not None,
            any_class=asked.label is None,
        )
    known, unknown = read_masked(image, mask, inpainter.image)
    labels = None
    if asked.label is not None:
        labels = _labels(task, count, asked)
        check_labels(task, labels)
    made = jit_here(partial(inpainter.inpaint, resamplings=resamplings))(
        trained.params,
        trained.mutable,
        row_keys(jax.random.key(asked.seed), count),
        labels,
        jnp.broadcast_to(known, (count, *known.shape)),
        jnp.asarray(~unknown[..., None]),
    )
    images = np.clip(np.asarray(made, np.float32), 0, 1)
    seen = np.where(unknown[..., None], 0.5, known)
    arrays = _how(run, trained, inpainter.sampling, asked) | {"resamplings": np.array(resamplings)}
    row = partial(_beginning_with, (known, seen))
    names = ("image", "known", *(f"filled {i + 1}" for i in range(count)))
    return _write(images, arrays, row, output / "inpainted", names)


def read_masked(
    image: Path, mask: Path, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The image, in [0, 1], and where it is to be filled in [height, width].

    Raises:
        RunError: if one has another size than ``shape`` or transparent parts, or the mask leaves
            nothing to do or nothing to go by.
        DataError: for a file that is no image.
    """
    height, width, channels = shape
    for file in (image, mask):
        _check_opaque(file)
    known = np.asarray(read_image(image, channels), np.float32) / 255
    known = known.reshape(*known.shape[:2], channels)
    unknown = np.asarray(read_image(mask, 1)) >= 128
    for file, found in ((image, known), (mask, unknown)):
        if found.shape[:2] != (height, width):
            raise RunError(
                f"{file} has {found.shape[1]}x{found.shape[0]} pixels, the run makes "
                f"{width}x{height}: bring it to that size"
            )
    if not unknown.any() or unknown.all():
        much = "nothing" if not unknown.any() else "everything"
        raise RunError(f"{mask} asks for {much} to be filled in: make only that part white")
    return known, unknown


def _path(
    trained: Trained, task: Generative, keys: jax.Array, labels: jax.Array | None
) -> np.ndarray:
    """Images on their way out of noise, a frame a step."""
    return np.asarray(jit_here(task.path)(trained.params, trained.mutable, keys, labels)[0])


@contextmanager
def _about(run: Path) -> Iterator[None]:
    """What a task says it cannot do, as a line about its run."""
    try:
        yield
    except SettingError as error:
        raise RunError(f"{run}: {error}") from error


def _how(run: Path, trained: Trained, sampling: Any, asked: Images) -> dict[str, np.ndarray]:
    """What distinguishes the images of one command from those of another."""
    made = {"run": str(run), "weights": asked.weights or "default"}
    if sampling is not None:
        made["sampling"] = resolve(sampling)
    return {
        "seed": np.array(asked.seed),
        "step": np.array(trained.step),
        "made": np.array(json.dumps(made)),
    }


def _check_opaque(file: Path) -> None:
    """Raises RunError for an image with transparent parts, whose colours are whatever they are."""
    with opened(file) as image:
        opacity = np.asarray(image.convert("RGBA"))[..., 3] if image.has_transparency_data else 255
    if np.min(opacity) < 255:
        raise RunError(f"{file} has transparent parts: save it without, on black or white")


def _open(run: Path, asked: Images, allow: Sequence[str]) -> tuple[Trained, Generative]:
    trained = open_run(run, asked.weights, allow=allow)
    with _about(run):
        task = trained.experiment.task
        generator = task.as_kind(Generative, NO_IMAGES.format(type(task).__name__))
    changes: dict[str, Any] = {
        name: value
        for name, value in (("steps", asked.steps), ("guidance", asked.guidance))
        if value is not None
    }
    if asked.sampler is not None:
        changes["sampler"] = SAMPLERS[asked.sampler]
    return trained, generator.with_sampling(**changes)


def _labels(task: Generative, count: int, asked: Images) -> np.ndarray | None:
    if asked.label is not None:
        return np.full(count, asked.label, np.int32)
    if task.num_classes is None:
        return None
    return np.arange(count, dtype=np.int32) % task.num_classes


def _write(
    images: np.ndarray,
    arrays: dict[str, np.ndarray],
    rows: Any,
    stem: Path,
    columns: Sequence[str] = (),
) -> list[Path]:
    """A picture of images in [0, 1] and the arrays, as ``stem.png`` and ``stem.npz``."""
    written = [stem.with_suffix(".png"), stem.with_suffix(".npz")]
    whole = {"image": np.round(images * 255).astype(np.uint8), **arrays}
    with writing(stem.parent, ELSEWHERE):
        figures.save(figures.panels(rows(images), columns=columns), written[0])
        with replacing(written[1]) as file:
            np.savez_compressed(file, **whole)
    return written


def _animate(frames: Sequence[np.ndarray], path: Path) -> Path:
    """A GIF of grids [rows, columns, height, width, channels] in [0, 1]; its end stays a while."""
    some = np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().astype(int)
    pictures = [_picture(frames[i]) for i in some]
    durations = [round(1000 * SECONDS / len(pictures))] * (len(pictures) - 1) + [2000]
    with writing(path.parent, ELSEWHERE), replacing(path) as file:
        pictures[0].save(
            file, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0
        )
    return path


def _picture(grid: np.ndarray) -> Image.Image:
    """A grid with white lines between the images, each pixel three by three."""
    padded = np.pad(grid, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=1.0)
    rows, columns, height, width, channels = padded.shape
    whole = padded.swapaxes(1, 2).reshape(rows * height, columns * width, channels)
    whole = np.round(255 * whole.repeat(3, axis=0).repeat(3, axis=1)).astype(np.uint8)
    return Image.fromarray(whole[..., 0] if channels == 1 else whole)


def _beginning_with(first: Sequence[np.ndarray], images: np.ndarray) -> np.ndarray:
    """One row of images behind these."""
    return np.concatenate([np.stack(first), images])[None]


def _rows(images: np.ndarray, classes: int | None) -> np.ndarray:
    """Images in rows, near to a square; where classes come in turn, each has columns of its own."""
    columns = int(np.ceil(np.sqrt(len(images))))
    if classes and len(images) >= classes:
        columns = classes * max(1, round(columns / classes))
    missing = -len(images) % columns
    padded = np.concatenate([images, np.ones((missing, *images.shape[1:]), images.dtype)])
    return padded.reshape(-1, columns, *images.shape[1:])
