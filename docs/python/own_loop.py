"""A model, a loss and optax in a loop of one's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from opsin.data.examples import materialize
from opsin.data.sources import digits
from opsin.losses.classification import cross_entropy_loss
from opsin.models.classification.lenet import LeNet5

train, test = (materialize(digits(split)) for split in ("train", "test"))
model = LeNet5(num_classes=10)
optimizer = optax.adamw(2e-3)


def prepare(images):
    return images.astype(jnp.float32) / 255


def loss(params, images, labels):
    logits = model.apply({"params": params}, prepare(images), train=True)
    return jnp.mean(cross_entropy_loss(logits, labels))  # losses are one number an image


@jax.jit
def step(params, state, images, labels):
    value, gradient = jax.value_and_grad(loss)(params, images, labels)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value


# Under jit: without it each operation of the network is compiled and run by itself.
params = jax.jit(model.init)(jax.random.key(0), prepare(train["image"][:1]))["params"]
state = jax.jit(optimizer.init)(params)
rng = np.random.default_rng(0)
for number in range(1, 201):
    rows = rng.choice(len(train["label"]), 64)
    params, state, value = step(params, state, train["image"][rows], train["label"][rows])
    if number % 50 == 0:
        print(f"step {number}: loss {value:.3f}")

logits = jax.jit(model.apply)({"params": params}, prepare(test["image"]))
accuracy = np.mean(np.argmax(logits, axis=-1) == test["label"])
print(f"accuracy on {len(logits)} unseen digits: {accuracy:.1%}")
