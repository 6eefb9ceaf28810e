"""Tasks whose models generate images: sampling, sampling paths and inpainting."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NoReturn, Protocol, Self, runtime_checkable

from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from opsin.train.settings import SettingError
from opsin.train.tasks.task import Task


class Generative(Task):
    """A task whose model makes images.

    Attributes:
        sampling: how it samples, to be recorded with the images; None if there is one way only.
    """

    sampling: Any = None

    @property
    @abstractmethod
    def num_classes(self) -> int | None:
        """The number of classes that the model is conditioned on, or None."""

    @abstractmethod
    def sample(
        self,
        params: PyTree,
        mutable: PyTree,
        keys: Key[Array, " n"],
        labels: Int[Array, " n"] | None,
    ) -> Float[Array, "n height width channels"]:
        """Images in [0, 1], each from its own key alone; ``labels`` if ``num_classes`` is set."""

    def with_sampling(self, **changes: Any) -> Self:
        """The task with other fields of its ``sampling``.

        Raises:
            SettingError: if they contradict, or there is nothing to choose.
        """
        if changes:
            self._only_diffusion(f"{', '.join(f'--{name}' for name in changes)} is")
        return self

    def path(
        self,
        params: PyTree,
        mutable: PyTree,
        keys: Key[Array, " n"],
        labels: Int[Array, " n"] | None,
    ) -> tuple[Float[Array, "steps n ..."], Float[Array, "steps n ..."]]:
        """Images on their way out of noise, and the estimates of them at each step.

        Raises:
            SettingError: if they are made in one step.
        """
        self._only_diffusion("--path is")

    def inpainter(
        self, resamplings: int, *, steps: int | None, keep_sampler: bool, any_class: bool
    ) -> Inpainter:
        """The task, set up to fill in parts of images.

        Args:
            resamplings: how often each step is done; see ``ops.diffusion.inpainting``.
            steps: of the sampler that takes the place of one that cannot fill in.
            keep_sampler: whether the sampler must stay what it is.
            any_class: whether no class is asked for.

        Raises:
            SettingError: if the model cannot do so, or not in this way.
        """
        self._only_diffusion("inpaint is")

    def _only_diffusion(self, what: str) -> NoReturn:
        raise SettingError(f"{what} for diffusion models, not {type(self).__name__}")


@runtime_checkable
class Inpainter(Protocol):
    """A generative task that fills in parts of images."""

    @property
    def image(self) -> tuple[int, int, int]:
        """Height, width and channels of the images."""
        ...

    @property
    def sampling(self) -> Any:
        """How it samples, to be recorded with the images."""
        ...

    def inpaint(
        self,
        params: PyTree,
        mutable: PyTree,
        keys: Key[Array, " n"],
        labels: Int[Array, " n"] | None,
        known: Float[Array, "n ..."],
        mask: Bool[Array, ...],
        resamplings: int,
    ) -> Float[Array, "n ..."]:
        """Images that are ``known`` where the mask is true; without labels, of any class."""
        ...
