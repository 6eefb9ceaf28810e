"""A linen model and its weights, used from Flax NNX."""

import jax
import numpy as np
import optax
from flax import nnx

from opsin.models.classification.lenet import LeNet5

model = LeNet5(num_classes=10)
images = np.random.default_rng(0).random((8, 28, 28, 1), np.float32)
labels = np.arange(8)
variables = jax.jit(model.init)(jax.random.key(0), images)  # or opsin.load(RUN).variables

bridged = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0))
for name, leaves in nnx.bridge.variables.linen_vars_to_nnx_attrs(variables).items():
    setattr(bridged, name, leaves)
same = bridged(images)  # what model.apply(variables, images) gives


@nnx.jit
def step(module, optimizer):
    """One update of the weights, which live in the module."""

    def loss(module):
        logits = module(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, gradients = nnx.value_and_grad(loss)(module)
    optimizer.update(module, gradients)
    return value


optimizer = nnx.Optimizer(bridged, optax.adam(1e-3), wrt=nnx.Param)
losses = [float(step(bridged, optimizer)) for _ in range(20)]
print(f"loss {losses[0]:.2f} to {losses[-1]:.2f}")

# And back, for opsin's own functions.
state = nnx.to_pure_dict(nnx.state(bridged, nnx.Param))
trained = {"params": {name: state[name] for name in variables["params"]}}
logits = model.apply(trained, images)
