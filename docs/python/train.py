"""An experiment, trained from Python."""

from functools import partial

import opsin
from opsin.data.geometry import random_crop
from opsin.losses.classification import cross_entropy_loss
from opsin.models.classification.lenet import LeNet5
from opsin.train.methods import adamw
from opsin.train.schedules import cosine
from opsin.train.tasks.classify import Classify

experiment = opsin.Experiment(
    task=Classify(
        model=LeNet5(num_classes=10),
        loss_function=partial(cross_entropy_loss, smoothing=0.1),
    ),
    data=opsin.Data(source="digits", batch=64, augment=(partial(random_crop, padding=1),)),
    optimizer=opsin.Optimizer(method=adamw, learning_rate=2e-3, schedule=cosine),
    loop=opsin.Loop(duration="8 epochs", evaluate_every="4 epochs"),
)
outcome = opsin.fit(experiment, "my_digits")
print(outcome.directory)
print(f"accuracy {outcome.metrics['test/accuracy']:.1%}")
