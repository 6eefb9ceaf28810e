"""A finished run, opened and asked about NumPy images."""

from pathlib import Path

import numpy as np

import opsin
from opsin.data.examples import materialize
from opsin.data.sources import digits

(directory,) = Path("runs/my_digits").iterdir()  # the run that train.py made
run = opsin.load(directory)
images = materialize(digits("test"))["image"]  # uint8 [360, 8, 8, 1]

probabilities = run.predict(images[0])  # of one image: [10]
label = int(np.argmax(probabilities))
print(f"a {run.class_names[label]}, with probability {probabilities[label]:.1%}")

probabilities = run.predict(images)  # of several: [360, 10]
photograph = np.full((300, 400, 3), 200, np.uint8)  # of another size, and in colour
print(run.predict([photograph, images[0]]).shape)

# The network itself, for whatever else you want of it.
logits = run.model.apply(run.variables, run.prepare(images[:5]))
print(logits.shape)
