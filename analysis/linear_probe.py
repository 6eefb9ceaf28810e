"""Linear classifiers on frozen features."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from opsin.losses.classification import cross_entropy_loss
from opsin.ranges import NonNegative, Seed
from opsin.train.compiler import jit_here

Vectors = Float[np.ndarray, "images numbers"]
Classes = Int[np.ndarray, " images"]
HeldOut = Float[np.ndarray, "held_out numbers"]
Truth = Int[np.ndarray, " held_out"]

ITERATIONS = 500  # of L-BFGS, at most: with a weak penalty more of them change few answers
SGD_BATCH = 256


def linear_probe(
    features: Vectors,
    classes: Classes,
    held_out: HeldOut,
    truth: Truth,
    *,
    penalties: Sequence[float],
    splits: Any,
) -> tuple[float, float]:
    """Multinomial logistic regression on standardised features, by full-batch L-BFGS.

    It minimises the mean cross-entropy plus l2/2 · ‖W‖². The l2 that does best on the features that
    are set aside is used to fit all features.

    Args:
        features: of the images to learn from, float.
        classes: theirs, int.
        held_out: features that are classified.
        truth: their classes.
        penalties: candidates for l2. During the choice, on fewer images, each is scaled up by the
            ratio of their numbers.
        splits: what is set aside for the choice, as ``cv`` of scikit-learn's ``GridSearchCV``;
            unused with one candidate.

    Returns:
        The accuracy on the held-out features, and the chosen l2.
    """
    # Imported where it is used: it takes a second.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # scikit-learn weighs the sum of the losses by C, and the penalty by 1.
    weights = {1 / (l2 * len(features)): l2 for l2 in penalties}
    model: Any = make_pipeline(StandardScaler(), LogisticRegression(max_iter=ITERATIONS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if len(weights) > 1:
            search = GridSearchCV(model, {"logisticregression__C": list(weights)}, cv=splits)
            model = search.fit(features, classes)
            chosen = weights[search.best_params_["logisticregression__C"]]
        else:
            ((c, chosen),) = weights.items()
            model = model.set_params(logisticregression__C=c).fit(features, classes)
    return float(model.score(held_out, truth)), chosen


def sgd_probe(
    features: Vectors,
    classes: Classes,
    held_out: HeldOut,
    truth: Truth,
    *,
    epochs: int,
    seed: Seed,
    learning_rate: NonNegative = 0.1,
) -> float:
    """Accuracy of a linear classifier trained as in Chen et al., 2020, arXiv:2002.05709, B.6.

    SGD with Nesterov momentum 0.9, no weight decay, lr = 0.1 · batch / 256, here on features that
    are extracted once, of whole images rather than of crops, standardised, and with a cosine
    schedule, which the authors use for the pre-training.

    Args:
        features: of the images to learn from, float.
        classes: theirs, from 0.
        held_out: features that are classified.
        truth: their classes.
        epochs: passes over the features; the paper's are 90.
        seed: of the order.
        learning_rate: for a batch of 256, the size used unless there are fewer images.
    """
    mean, std = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
    count, batch = len(features), min(SGD_BATCH, len(features))
    per_epoch = count // batch
    schedule = optax.cosine_decay_schedule(learning_rate * batch / 256, epochs * per_epoch)
    optimizer = optax.sgd(schedule, momentum=0.9, nesterov=True)
    outputs = int(max(classes.max(), truth.max())) + 1

    def logits(params: dict[str, Array], inputs: Array) -> Array:
        return jnp.dot(inputs, params["kernel"], precision="highest") + params["bias"]

    @jit_here
    def train(inputs: Array, targets: Array) -> dict[str, Array]:
        def step(carry: Any, chosen: Array) -> tuple[Any, None]:
            params, state = carry

            def loss(params: dict[str, Array]) -> Array:
                return jnp.mean(cross_entropy_loss(logits(params, inputs[chosen]), targets[chosen]))

            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        def epoch(carry: Any, index: Array) -> tuple[Any, None]:
            key = jax.random.fold_in(jax.random.key(seed), index)
            order = jax.random.permutation(key, count)[: per_epoch * batch]
            return jax.lax.scan(step, carry, order.reshape(per_epoch, batch))[0], None

        params = {
            "kernel": jnp.zeros((inputs.shape[1], outputs)),
            "bias": jnp.zeros(outputs),
        }
        carry = (params, optimizer.init(params))
        (params, _), _ = jax.lax.scan(epoch, carry, jnp.arange(epochs))
        return params

    params = jax.device_get(train(jnp.asarray((features - mean) / std), jnp.asarray(classes)))
    found = (held_out - mean) / std @ params["kernel"] + params["bias"]
    return float(np.mean(found.argmax(axis=-1) == truth))
