"""Features of a finished run: written with their images' ids, and drawn."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from opsin.analysis.features import Layer, check_features, extract_features
from opsin.commands.runs import RunError
from opsin.commands.trained import Trained, open_run
from opsin.config.tree import resolve
from opsin.data.examples import Examples, materialize
from opsin.data.files import check_new, replacing, writing
from opsin.data.folder import folder
from opsin.data.selection import drawn_places, select
from opsin.data.sources import open_source
from opsin.pictures import figures
from opsin.train.measurements import Subject, Track
from opsin.train.preparation import prepared
from opsin.train.tensors import fingerprint


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
    allow: Sequence[str] = (),
) -> list[Path]:
    """Writes ``embedding.npz``, features of images, and ``embedding.png``, two maps of them.

    The arrays are ``features`` float32 [count, d] as the network gives them, ``id`` int64 [count],
    the place in the split, ``label`` int32 [count] where there are classes, ``pca`` and ``tsne``
    [count, 2], and ``made``, JSON that names the weights, layer, data and normalisation. Maps are
    made of features at unit length; t-SNE (van der Maaten & Hinton, 2008, JMLR 9) is
    scikit-learn's.

    Args:
        run: of a classifier or of contrastive learning.
        source: of the images; None takes the run's own data. Images of a ``folder:PATH`` are
            resized to the size that the run was trained on.
        split: of the source.
        count: images, drawn at random where there are more.
        layer: which features; see ``analysis.features``.
        seed: of the draw and of the map.
        output: directory.
        track: shows how far it has come.
        allow: see ``reopen``.

    Raises:
        RunError: if this is no run, the images have another size, or nothing can be written.
        SettingError: if the network has no features, or they are not finite.
        DataError: if the data cannot be read.
        WriteError: a file of one of these names is there.
    """
    check_new(output / name for name in ("embedding.png", "embedding.npz"))
    trained = open_run(run, allow=allow)
    data, task = trained.experiment.data, trained.experiment.task
    check_features(task, trained.image)
    examples = _opened(trained, source, split)
    ids, images = _drawn(trained, examples, count, seed)
    variables, prepare = (trained.params, trained.mutable), partial(prepared, data=data)
    subject = Subject(task, variables, {split: examples}, prepare, track)
    found = extract_features(subject, {split: images})
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
    title = f"{type(task).__name__}, {layer} of {len(features)} images"
    return _write(output, arrays, examples.class_names, title)


def _opened(trained: Trained, source: str | None, split: str) -> Examples:
    """The split of a source, or of the run's own; images of a folder come in the run's size."""
    height, width, channels = trained.image
    chosen: Any = trained.experiment.data.source if source is None else source
    if source is not None and source.startswith("folder:") and height == width:
        path = source.removeprefix("folder:")
        chosen = partial(folder, path, size=height, channels=channels)
    return open_source(chosen, split)


def _drawn(
    trained: Trained, examples: Examples, count: int, seed: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Places of images that are drawn, and the images."""
    total = len(examples.records)
    if min(total, count) < 3:
        raise RunError(
            f"a map of {min(total, count)} images shows nothing: give a split with more, and --n 3 "
            "or more"
        )
    ids = drawn_places(count, total, seed=seed).astype(np.int64)
    images = materialize(select(examples, ids))
    if images["image"].shape[1:] != trained.image:
        raise RunError(
            f"the run was trained on images {list(trained.image)}, and these are "
            f"{list(images['image'].shape[1:])}: bring them to that size"
        )
    return ids, images


def _write(
    output: Path, arrays: Mapping[str, np.ndarray], class_names: Sequence[str], title: str
) -> list[Path]:
    """The picture and the arrays; their paths."""
    picture, file = output / "embedding.png", output / "embedding.npz"
    points = {"PCA": arrays["pca"], "t-SNE": arrays["tsne"]}
    with writing(output, "choose another directory with --output"):
        figures.save(figures.scatter(points, arrays.get("label"), class_names, title), picture)
        with replacing(file) as opened:
            np.savez_compressed(opened, **arrays)  # pyright: ignore[reportArgumentType]
    return [picture, file]


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
