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
from opsin.commands.trained import Trained, as_begun, reopen, trained_of
from opsin.config.tree import resolve
from opsin.data.examples import Examples, materialize
from opsin.data.files import check_new, replacing, writing
from opsin.data.folder import folder
from opsin.data.selection import drawn_places, select
from opsin.data.sources import open_source
from opsin.metrics.representation import knn_accuracy
from opsin.pictures import figures
from opsin.pictures.maps import scatter
from opsin.train.measurements import Subject, Track
from opsin.train.preparation import prepared
from opsin.train.tensors import fingerprint

NEIGHBOURS = 10
"""Nearest neighbours that vote for the class of an image."""


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
    before: bool = False,
    allow: Sequence[str] = (),
) -> list[Path]:
    """Writes ``embedding.npz``, features of images, and ``embedding.png``, two maps of them.

    The arrays are ``features`` float32 [count, d] as the network gives them, ``id`` int64 [count],
    the place in the split, ``label`` int32 [count] where there are classes, ``pca`` and ``tsne``
    [count, 2], and ``made``, JSON that names the weights, layer, data and normalisation. Maps are
    made of features at unit length; t-SNE (van der Maaten & Hinton, 2008, JMLR 9) is
    scikit-learn's. It keeps neighbours together and nothing else: distances between clusters and
    their sizes mean nothing, and other seeds or perplexities give other pictures.

    The number beside the maps is therefore one of the features: the accuracy of the 10 nearest
    neighbours (see ``knn_accuracy``), each half of the images, cut at random, classified by the
    other half. There is none where an image has no class, which a negative label says.

    With ``before``, the same images are embedded by the network before its first step too, with
    the weights that the run took and the statistics that its norms began with: a row of maps above
    the others, and ``before_features``, ``before_pca`` and ``before_tsne``.

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
        before: whether to embed them by the network as the run began it, too.
        allow: see ``reopen``.

    Raises:
        RunError: if this is no run, the images have another size, or nothing can be written.
        WeightsError: if the run began with weights whose file is gone, and ``before`` needs it.
        SettingError: if the network has no features, or they are not finite.
        DataError: if the data cannot be read.
        WriteError: a file of one of these names is there.
    """
    picture, file = output / "embedding.png", output / "embedding.npz"
    check_new((picture, file))
    reopened = reopen(run, allow=allow)
    trained = trained_of(reopened)
    networks = {"": trained}
    if before:
        networks = {"before": trained_of(as_begun(reopened)), "after": trained}
    data, task = trained.experiment.data, trained.experiment.task
    check_features(task, trained.image)
    examples = _opened(trained, source, split)
    ids, images = _drawn(trained, examples, count, seed)
    labels = images.get("label")
    arrays = {"id": ids, **({} if labels is None else {"label": labels})}
    described = {"layer": layer, **_described(trained), "images": {"of": source, "split": split}}
    columns = "PCA", f"t-SNE, perplexity {_perplexity(len(ids)):.3g}, seed {seed}"
    rows, prepare = {}, partial(prepared, data=data)
    for when, network in networks.items():
        front, said = "before_" if when == "before" else "", [when] if when else []
        variables = network.params, network.mutable
        subject = Subject(task, variables, {split: examples}, prepare, track)
        features = extract_features(subject, {split: images})[split][layer]
        maps = {name: make() for name, make in track(_maps(features, seed).items(), "maps")}
        arrays |= {f"{front}{name}": x for name, x in {"features": features, **maps}.items()}
        described[f"{front}checkpoint"] = _checkpoint(network)
        if labels is not None and labels.min() >= 0:
            accuracy = described[f"{front}knn_accuracy"] = _accuracy(features, labels, seed)
            said.append(f"accuracy of {_neighbours(len(ids))} neighbours {accuracy:.1%}")
        rows[": ".join(said)] = dict(zip(columns, maps.values(), strict=True))
    arrays["made"] = np.array(json.dumps(described))
    title = f"{type(task).__name__}, {layer} of {len(ids)} images"
    with writing(output, "choose another directory with --output"):
        figures.save(scatter(rows, labels, examples.class_names, title), picture)
        with replacing(file) as opened:
            np.savez_compressed(opened, **arrays)  # pyright: ignore[reportArgumentType]
    return [picture, file]


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


def _maps(features: np.ndarray, seed: int) -> Mapping[str, Callable[[], np.ndarray]]:
    """Two coordinates an image, by name; made when they are called."""
    # Imported where it is used: it takes a second.
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.maximum(lengths, 1e-12)
    tsne = TSNE(init="pca", perplexity=_perplexity(len(unit)), random_state=seed)
    return {
        "pca": partial(PCA(n_components=2, random_state=seed).fit_transform, unit),
        "tsne": partial(tsne.fit_transform, unit),
    }


def _perplexity(count: int) -> float:
    """Of t-SNE of so many images: scikit-learn's default, or what few of them allow."""
    return min(30.0, (count - 1) / 3)


def _neighbours(count: int) -> int:
    """Of an image, in the other half of so many."""
    return min(NEIGHBOURS, count // 2)


def _accuracy(features: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """Share of images whose nearest neighbours in the other half of them have their class."""
    halves = np.array_split(np.random.default_rng(seed).permutation(len(labels)), 2)
    right = 0.0
    for bank, queries in (halves, halves[::-1]):
        pairs = features[bank], labels[bank], features[queries], labels[queries]
        options: Any = {"classes": int(labels.max()) + 1, "k": _neighbours(len(labels))}
        right += len(queries) * knn_accuracy(*pairs, **options)
    return right / len(labels)


def _checkpoint(trained: Trained) -> dict[str, Any]:
    """Which weights."""
    variables = {"params": trained.params, **trained.mutable}
    return {"step": trained.step, "sha256": fingerprint(variables)}


def _described(trained: Trained) -> dict[str, Any]:
    """How images reached the weights."""
    data = trained.experiment.data
    return {
        "normalization": {"mean": list(data.mean), "std": list(data.std)},
        "data": resolve(replace(data, augment=())),
    }
