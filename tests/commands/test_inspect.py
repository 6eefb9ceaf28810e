"""``opsin inspect``: a picture of batches as the network sees them."""

from dataclasses import replace

import numpy as np
from PIL import Image

from tests.commands import tiny


def negative(key, batch):
    return {**batch, "image": 1 - batch["image"]}


def test_it_draws_augmented_batches(opsin, monkeypatch):
    done = opsin("inspect", "tiny", "--batches", "2", "--output", "deep/batch.png")
    assert (done.code, done.out, done.err) == (0, "deep/batch.png\n", "")
    plain = tiny.config()
    data = replace(plain.data, augment=(negative,))
    monkeypatch.setattr(tiny, "config", lambda: replace(plain, data=data))
    assert opsin("inspect", "tiny", "--batches", "2").out == "tiny_batch.png\n"
    with Image.open("deep/batch.png") as picture, Image.open("tiny_batch.png") as augmented:
        assert picture.format == "PNG"
        before, after = (np.asarray(x.convert("L"), float) for x in (picture, augmented))
    assert before.std() > 10  # something is drawn
    changed = np.abs(before - after) > 20
    assert 0.05 < changed.mean() < 0.95  # the images, and nothing around them
    np.testing.assert_allclose((before + after)[changed], 255, atol=3)


def test_it_draws_one_batch_unless_told(opsin):
    assert opsin("inspect", "tiny", "data.batch=3", "--batches", "0").code == 2
