"""Images from a denoiser of one's own, by the samplers of diffusion models."""

import jax
import jax.numpy as jnp

from opsin.data.examples import materialize
from opsin.data.sources import digits
from opsin.ops.diffusion.process import Denoiser
from opsin.ops.diffusion.samplers import Ancestral, Ddim
from opsin.ops.diffusion.sampling import prior_noise, sample
from opsin.ops.diffusion.schedules import Discrete, cosine_betas

process = Discrete(cosine_betas, steps=1000)
known = jnp.asarray(materialize(digits("train"))["image"][:100] / 127.5 - 1, jnp.float32)


def model(x, t):
    """Any function (x [batch, ...], t [batch]) -> prediction, such as a network of yours.

    This one needs no training: it is the best denoiser there can be for 100 known images, the mean
    of them, each weighted by how likely it is that it became x.
    """
    levels = process.levels(t)
    alpha, sigma = (level[:, None] for level in (levels.alpha, levels.sigma))
    distances = jnp.sum((x[:, None] - alpha[..., None, None, None] * known) ** 2, axis=(2, 3, 4))
    shares = jax.nn.softmax(-distances / (2 * sigma**2), axis=1)
    return jnp.tensordot(shares, known, axes=1)


denoiser = Denoiser(model, target="x0")  # or "epsilon", "v", "score": what your model predicts


@jax.jit
def draw(keys):
    noise = prior_noise(keys, known.shape[1:], process)
    times = process.times(25)  # of the process's 1000
    return {
        "ancestral": sample(denoiser, process, Ancestral(), keys, noise, times=times),
        "ddim": sample(denoiser, process, Ddim(), keys, noise, times=times),
    }


keys = jax.random.split(jax.random.key(0), 12)  # one for each image
samples = draw(keys)
for name, images in samples.items():
    distances = jnp.abs(images[:, None] - known).mean(axis=(2, 3, 4)).min(axis=1)
    print(f"{name}: images {images.shape}, {float(distances.mean()):.3f} from a known one")
