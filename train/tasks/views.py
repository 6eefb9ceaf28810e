"""What a task shows people while it trains, and answers about its network afterwards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import flax.linen as nn
from jaxtyping import Array, Float, Key, PyTree

from opsin.data.augment import Batch
from opsin.pictures.kinds import Chart, Curve, Picture, Prediction
from opsin.train.settings import SettingError

Kind = TypeVar("Kind")


class Views(ABC):
    """The part of a ``Task`` that no update of a weight depends on.

    Attributes:
        curves: panels of the training curve.
        progress: training metrics that the progress bar shows.
        context: pixels around a tile of an image that ``predict`` takes too, at each side.
        by_class: fields whose network has as many ``num_classes`` as the data.
        input_range: of the images that its network sees, where the task itself maps those that come
            in [0, 1].
    """

    curves: ClassVar[tuple[Curve, ...]] = (Curve(("loss", "nll"), logarithmic=True),)
    progress: ClassVar[tuple[str, ...]] = ("loss",)
    by_class: ClassVar[tuple[str, ...]] = ("model",)
    input_range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @property
    def context(self) -> int:  # noqa: D102
        return 0

    @abstractmethod
    def preview(
        self, params: PyTree, mutable: PyTree, batch: Batch, key: Key[Array, ""]
    ) -> Mapping[str, Picture]:
        """Pictures of what the model does with a batch."""

    def diagnose(self, numbers: Mapping[str, float]) -> Iterable[str]:
        """Lines for people about the ``split/metric`` numbers of an evaluation.

        They tell of training that goes wrong in a way that no error shows.
        """
        del numbers
        return ()

    def fixed(self) -> Mapping[str, PyTree]:
        """Trained weights that ``evaluate`` needs and no step, in NumPy by name.

        They are in the ``mutable`` of ``evaluate``, so that no program holds them as constants.
        """
        return {}

    def charts(self, states: Mapping[str, Any]) -> Mapping[str, Chart]:
        """Charts of the metric states of a whole evaluation, by the name of the metric."""
        del states
        return {}

    def predict(
        self, params: PyTree, mutable: PyTree, images: Float[Array, "images height width channels"]
    ) -> Prediction:
        """What the model says of prepared images, which have ``context`` at each side.

        Raises:
            SettingError: if it says nothing of single images.
        """
        raise SettingError(
            f"predict is for classification and segmentation, not for {type(self).__name__}; "
            "images are made by opsin sample"
        )

    def feature_model(self) -> nn.Module | None:
        """The one network, whose features are taken and which others know; None of several.

        It is the field ``model``, where the task has one.
        """
        model = getattr(self, "model", None)
        return model if isinstance(model, nn.Module) else None

    def as_kind(self, kind: type[Kind], otherwise: str) -> Kind:
        """The task itself, if it can do what a protocol, or ``Generative``, asks for.

        Raises:
            SettingError: if it is not; ``otherwise`` is the message.
        """
        if not isinstance(self, kind):
            raise SettingError(otherwise)
        return self
