"""Features of a finished run: what they are worth, and what they look like."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from data.examples import Examples
from data.folder import folder
from data.pipeline import train_batches
from data.selection import select
from data.sources import open_source
from experiments.config import resolve
from experiments.runs import RunError
from experiments.trained import Trained, open_run
from train import figures
from train.compiler import jit_here
from train.features import Layer, check_features, extract_features
from train.final_metrics import first_examples
from train.final_probe import Probe
from train.logging import replace_bytes
from train.program import prepared
from train.sets import open_training
from train.state import stream
from train.tasks.task import Track
from train.weights import fingerprint

STATISTICS = 100  # batches that give an untrained network the statistics of its norms


def probe(run: Path, asked: Probe, track: Track) -> tuple[Path, dict[str, dict[str, float]]]:
    """Probes the features of a run beside those of the same network with random weights.

    Both and what they are of go into ``RUN/probe_features.json``, or ``_head``.

    Args:
        run: of a classifier or of contrastive learning; its data are read again.
        asked: which probe.
        track: shows how far it has come.

    Returns:
        The file, and the numbers of ``"trained"`` and ``"untrained"``.

    Raises:
        RunError: if this is no run, or the file cannot be written.
        SettingError, DataError: as ``Probe.check``.
    """
    trained = open_run(run)
    experiment = trained.experiment
    data, task = experiment.data, experiment.task
    sets = {"train": open_training(experiment)}
    for name, split in data.eval_splits.items():
        sets[name] = open_source(data.source, split)
    asked.check(task, sets)
    prepare = partial(prepared, data=data)
    networks = {
        "trained": (trained.params, trained.mutable),
        "untrained": _untrained(trained, sets["train"], track),
    }
    found = {
        name: dict(asked(task, params, mutable, sets, prepare, track))
        for name, (params, mutable) in networks.items()
    }
    record = {"probe": resolve(asked), **_described(trained), **found}
    path = run / f"probe_{'_'.join(asked.layers)}.json"
    try:
        replace_bytes(path, (json.dumps(record, indent=1) + "\n").encode())
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error
    return path, found


def embed(
    run: Path,
    source: str | None,
    *,
    split: str,
    count: int,
    layer: Layer,
    seed: int,
    output: Path,
    track: Track,
) -> list[Path]:
    """Writes ``embedding.npz``, features of images, and ``embedding.png``, two maps of them.

    The arrays are ``features`` float32 [count, d] as the network gives them, ``id`` int64 [count],
    the place in the split, ``label`` int32 [count] where there are classes, ``pca`` and ``tsne``
    [count, 2], and ``made``, JSON that says of which weights, layer, data and normalisation. Maps
    are of features at unit length: t-SNE (van der Maaten & Hinton, 2008, JMLR 9) by scikit-learn.

    Args:
        run: of a classifier or of contrastive learning.
        source: of the images; None takes the run's own data. Those of a ``folder:PATH`` are brought
            to the size that the run was trained on.
        split: of the source.
        count: images, drawn at random where there are more.
        layer: which features; see ``train.features``.
        seed: of the draw and of the map.
        output: directory.
        track: shows how far it has come.

    Raises:
        RunError: if this is no run, the images have another size, or nothing can be written.
        SettingError: if the network has no features, or they are not finite.
        DataError: if the data cannot be read.
    """
    trained = open_run(run)
    data, task = trained.experiment.data, trained.experiment.task
    check_features(task, trained.image)
    height, width, channels = trained.image
    chosen: Any = data.source if source is None else source
    if source is not None and source.startswith("folder:") and height == width:
        path = source.removeprefix("folder:")
        chosen = partial(folder, path, size=height, channels=channels)
    examples = open_source(chosen, split)
    total = len(examples.records)
    if total < 3:
        raise RunError(f"a map of {total} images shows nothing: give a split with more")
    drawn = np.random.default_rng(seed).permutation(total)[:count]
    ids = np.sort(drawn).astype(np.int64)
    images = first_examples(select(examples, ids), None)
    if images["image"].shape[1:] != trained.image:
        raise RunError(
            f"{run} was trained on images {list(trained.image)}, and these are "
            f"{list(images['image'].shape[1:])}: bring them to that size"
        )
    found = extract_features(
        task, trained.params, trained.mutable, {split: images}, partial(prepared, data=data), track
    )
    features = found[split][layer]
    maps = {name: make() for name, make in track(_maps(features, seed).items(), "maps")}
    labels = images.get("label")
    described = {"layer": layer, **_described(trained), "images": {"of": source, "split": split}}
    arrays = {
        "features": features,
        "id": ids,
        **({} if labels is None else {"label": labels}),
        **maps,
        "made": np.array(json.dumps(described)),
    }
    written = [output / "embedding.png", output / "embedding.npz"]
    points = {"PCA": arrays["pca"], "t-SNE": arrays["tsne"]}
    title = f"{trained.experiment.task.__class__.__name__}, {layer} of {len(features)} images"
    try:
        figure = figures.scatter(points, labels, examples.class_names, title)
        figures.save(figure, written[0])
        with written[1].open("wb") as file:
            np.savez_compressed(file, **arrays)
    except OSError as error:
        raise RunError(
            f"cannot write to {output} ({error.strerror}): choose another directory with --output"
        ) from error
    return written


def _maps(features: np.ndarray, seed: int) -> Mapping[str, Callable[[], np.ndarray]]:
    """Two coordinates an image, by name; made when they are called."""
    # Imported where it is used: it takes a second.
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.maximum(lengths, 1e-12)
    perplexity = min(30.0, (len(unit) - 1) / 3)
    tsne = TSNE(init="pca", perplexity=perplexity, random_state=seed)
    return {
        "pca": partial(PCA(n_components=2, random_state=seed).fit_transform, unit),
        "tsne": partial(tsne.fit_transform, unit),
    }


def _described(trained: Trained) -> dict[str, Any]:
    """Which weights, and how images reached them."""
    data = trained.experiment.data
    variables = {"params": trained.params, **trained.mutable}
    return {
        "checkpoint": {"step": trained.step, "sha256": fingerprint(variables)},
        "normalization": {"mean": list(data.mean), "std": list(data.std)},
        "data": resolve(replace(data, augment=())),
    }


def _untrained(trained: Trained, examples: Examples, track: Track) -> tuple[PyTree, PyTree]:
    """The same network with random weights, its norms with the statistics of some batches."""
    experiment = trained.experiment
    data, model = experiment.data, experiment.task.model  # pyright: ignore[reportAttributeAccessIssue]
    prepare = partial(prepared, data=data)
    key = jax.random.key(experiment.seed)

    @jit_here
    def init(key: Any, image: Any) -> Any:
        return model.init(stream(key, 0, "init"), image, train=False)

    @jit_here
    def see(params: PyTree, mutable: PyTree, batch: Any) -> Any:
        return model.apply(
            {"params": params, **mutable},
            prepare(batch)["image"],
            train=True,
            rngs={"dropout": key},
            mutable=list(mutable),
        )[1]

    batches: Iterator[Any] = iter(train_batches(examples, batch=data.batch, seed=experiment.seed))
    first = prepare({"image": jnp.asarray(next(batches)["image"][:1])})
    variables = dict(init(key, first["image"]))
    params = variables.pop("params")
    mutable = variables
    if mutable:
        for _ in track(range(STATISTICS), "statistics of the untrained network"):
            mutable = dict(see(params, mutable, {"image": next(batches)["image"]}))
    return params, mutable
