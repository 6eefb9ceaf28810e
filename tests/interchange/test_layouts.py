"""Names and layouts of arrays elsewhere, by hand."""

import numpy as np
import pytest

from opsin.interchange.layouts import Key, place


def drawn(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def there_and_back(path, shape, rules, *arrays):
    where = place(path, shape, rules)
    ours = where.to_ours(arrays)
    assert ours.shape == tuple(shape)
    for array, again in zip(arrays, where.to_theirs(ours), strict=True):
        index, count = where.key.part
        np.testing.assert_array_equal(np.split(array, count)[index], again)
    return where, ours


def test_a_kernel_of_a_convolution_changes_the_order_of_its_axes():
    array = drawn(5, 4, 3, 2)
    where, ours = there_and_back("params/a/conv/kernel", (3, 2, 4, 5), {"a/conv": "x.0"}, array)
    assert where.names == ("x.0.weight",)
    assert ours[1, 0, 3, 4] == array[4, 3, 1, 0]


def test_a_linear_layer_is_turned_and_keeps_its_inputs_in_order_as_a_convolution():
    array = drawn(5, 4)
    _, ours = there_and_back("params/head/kernel", (4, 5), {"head": "fc"}, array)
    np.testing.assert_array_equal(ours, array.T)
    flat = drawn(5, 3 * 2 * 4)
    rules = {"fc6": Key("classifier.0", flat=True)}
    _, ours = there_and_back("params/fc6/kernel", (2, 4, 3, 5), rules, flat)
    image = drawn(3, 2, 4)  # channels first, as PyTorch flattens it
    expected = flat @ image.reshape(-1)
    np.testing.assert_allclose(np.tensordot(image.transpose(1, 2, 0), ours, 3), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("params/n/scale", "bn.weight"),
        ("params/n/bias", "bn.bias"),
        ("batch_stats/n/mean", "bn.running_mean"),
        ("batch_stats/n/var", "bn.running_var"),
    ],
)
def test_arrays_of_a_norm_are_called_as_pytorch_calls_them(path, name):
    where, _ = there_and_back(path, (4,), {"n": "bn"}, drawn(4))
    assert where.names == (name,)


def test_queries_keys_and_values_are_parts_of_one_array_in_each_layer():
    rules = {"blocks/query": Key("l{}.in_proj_*", part=(1, 3))}
    layers = [drawn(12, 4), drawn(12, 4) + 1]
    where, ours = there_and_back("params/blocks/query/kernel", (2, 4, 2, 2), rules, *layers)
    assert where.names == ("l0.in_proj_weight", "l1.in_proj_weight")
    x = drawn(4)
    for layer, kernel in zip(layers, ours, strict=True):
        heads = np.einsum("d,dhk->hk", x, kernel)
        np.testing.assert_allclose(heads.reshape(-1), (layer @ x)[4:8], rtol=1e-5)
    there_and_back("params/blocks/query/bias", (2, 2, 2), rules, drawn(12), drawn(12))


def test_heads_are_put_together_by_two_axes_of_inputs():
    rules = {"out": Key("proj", inputs=2)}
    array = drawn(4, 6)
    _, ours = there_and_back("params/out/kernel", (3, 2, 4), rules, array)
    heads = drawn(3, 2)
    np.testing.assert_allclose(
        np.einsum("hk,hkd->d", heads, ours), array @ heads.reshape(-1), rtol=1e-5
    )


def test_an_array_by_itself_has_a_name_of_its_own_and_may_have_axes_more():
    rules = {"backbone/positions": Key("pos_embed", expanded=(0,)), "token": "cls_token"}
    where, _ = there_and_back("params/backbone/positions", (5, 4), rules, drawn(1, 5, 4))
    assert where.names == ("pos_embed",)
    there_and_back("params/token", (1, 1, 4), rules, drawn(1, 1, 4))
    assert place("params/other/kernel", (2, 2), rules) is None


@pytest.mark.parametrize(
    ("shape", "array"),
    [
        ((2, 2), (2, 3)),
        ((4, 5), (4, 5)),
        ((3, 3, 4, 5), (5, 4, 9, 1)),
        ((1, 1, 2, 2), (2, 2, 2, 2)),
    ],
)
def test_other_shapes_are_refused(shape, array):
    where = place("params/a/kernel", shape, {"a": "a"})
    with pytest.raises(ValueError, match=r"\["):
        where.to_ours([drawn(*array)])


def test_what_cannot_be_parted_is_refused():
    where = place("params/a/kernel", (2, 2), {"a": Key("a", part=(0, 3))})
    with pytest.raises(ValueError, match="would fit"):
        where.to_ours([drawn(4, 2)])
