"""The reader of PyTorch's old files makes tensors; a file of an attacker makes it do nothing."""

import importlib.util
import io
import os
import pickle
import random
import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from opsin.interchange import files, tensor_pickle
from opsin.interchange.tensor_pickle import MAGIC, VERSION
from opsin.train.weights import WeightsError

MACHINE = {"protocol_version": VERSION, "little_endian": True, "type_sizes": {"int": 4}}


# A pickle of protocol 2 by hand, as PyTorch is not there to write one.
def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def name(module: str, member: str) -> bytes:
    return f"c{module}\n{member}\n".encode()


def many(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + many(*arguments) + b"R"


MAPPING = call(name("collections", "OrderedDict"))
REBUILD = name("torch._utils", "_rebuild_tensor_v2")


def storage(key="0", count=6, kind="FloatStorage", view=b"N") -> bytes:
    told = text("storage"), name("torch", kind), text(key), text("cpu"), number(count), view
    return many(*told) + b"Q"


def tensor(size=(2, 3), stride=(3, 1), offset=0, held=None) -> bytes:
    axes = (many(*map(number, each)) for each in (size, stride))
    return call(REBUILD, held or storage(), number(offset), *axes, b"\x89", MAPPING)


def named(**values: bytes) -> bytes:
    return MAPPING + b"(" + b"".join(text(key) + value for key, value in values.items()) + b"u"


SIX = np.arange(6, dtype=np.float32) - 2.5


def written(tree: bytes, storages=None, keys=None, machine=MACHINE) -> bytes:
    """A file with the header of ``torch.save``, this tree and these storages."""
    held = {"0": SIX} if storages is None else storages
    head = b"".join(pickle.dumps(each, 2) for each in (MAGIC, VERSION, machine))
    listed = pickle.dumps(list(held) if keys is None else keys, 2)
    data = b"".join(struct.pack("<q", x.size) + x.tobytes() for x in held.values())
    return head + b"\x80\x02" + tree + b"." + listed + data


@pytest.fixture
def read(tmp_path):
    def read(content: bytes):
        path = tmp_path / "weights.pth"
        path.write_bytes(content)
        held = tensor_pickle.read(path)
        return {key: x.array() for key, x in held.items() if isinstance(x, tensor_pickle.Tensor)}

    return read


def test_tensors_are_parts_of_storages(read):
    tree = named(
        whole=tensor(),
        turned=tensor(size=(3, 2), stride=(1, 3)),
        end=tensor(size=(2,), stride=(2,), offset=3),
        scalar=tensor(size=(), stride=(), offset=5),
        none=tensor(size=(0, 3), stride=(2**40, 1)),
    )
    found = read(written(tree + b"}" + text("_metadata") + MAPPING + b"sb"))
    np.testing.assert_array_equal(found["whole"], SIX.reshape(2, 3))
    np.testing.assert_array_equal(found["turned"], SIX.reshape(2, 3).T)
    np.testing.assert_array_equal(found["end"], SIX[[3, 5]])
    assert found["scalar"] == SIX[5]
    assert found["none"].shape == (0, 3)
    assert all(x.dtype == np.float32 and x.flags.c_contiguous for x in found.values())


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *(("DoubleStorage", "<f8"), ("HalfStorage", "<f2"), ("BFloat16Storage", jnp.bfloat16)),
        *(("LongStorage", "<i8"), ("IntStorage", "<i4"), ("ShortStorage", "<i2")),
        *(("CharStorage", "i1"), ("ByteStorage", "u1"), ("BoolStorage", "u1")),
    ],
)
def test_every_kind_of_number_becomes_float32(read, kind, dtype):
    numbers = np.array([0, 1, 1, 0, 1, 100]).astype(dtype)
    found = read(written(named(a=tensor(held=storage(kind=kind))), {"0": numbers}))
    np.testing.assert_array_equal(found["a"].reshape(-1), numbers.astype(np.float32))


def test_a_checkpoint_holds_other_things_beside_its_tensors(tmp_path):
    other = b"](" + number(1) + b"G" + struct.pack(">d", 0.5) + b"\x88Ne"
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(written(named(epoch=number(7), state_dict=named(a=tensor()), more=other)))
    if importlib.util.find_spec("torch") is None:
        arrays, _ = files.read(path)
        np.testing.assert_array_equal(arrays["a"], SIX.reshape(2, 3))
    assert tensor_pickle.read(path)["more"] == [1, 0.5, True, None]


class Reduced:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


def of(made, protocol=2) -> bytes:
    return pickle.dumps(made, protocol)[2:-1]


COMMAND = Reduced(os.system, "mkdir executed")
SETSTATE = MAPPING + b"}" + text("__setstate__") + name("os", "system") + b"sb"
HOSTILE = {
    "a command": (of(COMMAND), "names posix.system"),
    "within a mapping": (named(a=of(COMMAND)), "names posix.system"),
    "eval": (of(Reduced(eval, "__import__('os').mkdir('executed')")), "names builtins.eval|__bu"),
    "getattr": (of(Reduced(getattr, "a", "upper")), "getattr"),
    "an instance": (of(io.BytesIO(b"a")), "names "),
    "a path": (of(Path("executed")), "names "),
    "a call in a call": (call(call(name("builtins", "getattr"), text("a"))), "getattr"),
    "a class of torch": (call(name("torch.nn", "Linear"), number(1)), "names torch.nn.Linear"),
    "another rebuilder": (call(name("torch._utils", "_rebuild_parameter")), "_rebuild_parameter"),
    "arguments of a mapping": (call(name("collections", "OrderedDict"), b"N"), "argument"),
    "what is no function": (call(text("os.system"), text("mkdir executed")), "no function"),
    "a storage as function": (call(name("torch", "FloatStorage"), number(2**40)), "no function"),
    "attributes": (MAPPING + b"}" + text("items") + of(COMMAND) + b"sb", "names posix.system"),
    "a state that sets a state": (SETSTATE, "names os.system"),
    "a state of a tensor": (tensor() + b"}b", "a dict is needed"),
    "a state of a text": (text("a") + b"}b", "a dict is needed"),
    "INST": (b"(" + text("mkdir executed") + b"ios\nsystem\n", "the instruction INST"),
    "OBJ": (b"(" + name("os", "system") + text("mkdir executed") + b"o", "names os.system"),
    "NEWOBJ": (name("collections", "OrderedDict") + b")\x81", "the instruction NEWOBJ"),
    "STACK_GLOBAL": (text("os") + text("system") + b"\x93", "the instruction STACK_GLOBAL"),
    "an extension": (b"\x82\x01", "the instruction EXT1"),
    "protocol 4": (b"\x80\x04N", "the instruction PROTO 4"),
    "a long line": (b"Vaaaa\n", "the instruction UNICODE"),
    "tuples as a name": (b"}" + b")" + b"\x85" * 10**5 + b"Ns", "no text"),
    "an empty stack": (b"R", "stack"),
    "a mark too many": (b"tN", "pop"),
    "two results": (b"NN", "too many values"),
    "an unknown memory": (b"h\x07", "7"),
    "half a pair": (b"}(N" + b"u", "shorter"),
    "appended to a text": (text("a") + b"Na", "a list is needed"),
    "a huge storage": (named(a=tensor(held=storage(count=2**40))), "is more than the file"),
    "a storage below zero": (named(a=tensor(held=storage(count=-1))), "is more than the file"),
    "a storage of a word": (text("0") + b"Q", "a tuple is needed"),
    "a storage of others": (many(text("module"), *[b"N"] * 5) + b"Q", "refers to what is no stor"),
    "a short id": (many(text("storage")) + b"Q", "not enough values"),
    "a kind of others": (named(a=tensor(held=storage(kind="QInt8Storage"))), "QInt8Storage"),
    "a view": (named(a=tensor(held=storage(view=many(text("1"), number(0), number(1))))), "within"),
    "a tensor of no storage": (named(a=tensor(held=text("0"))), "has no storage"),
    "a stride too few": (named(a=tensor(stride=(1,))), "not a stride for each"),
    "too many axes": (named(a=tensor(size=(1,) * 33, stride=(1,) * 33)), "too many axes"),
    "a negative stride": (named(a=tensor(stride=(3, -1), offset=2)), "negative"),
    "a negative offset": (named(a=tensor(offset=-1)), "negative"),
    "an offset beyond": (named(a=tensor(offset=1)), "over the end"),
    "a stride beyond": (named(a=tensor(stride=(4, 1))), "over the end"),
    "none, beyond": (named(a=tensor(size=(0, 1), offset=7)), "over the end"),
    "a size that is none": (named(a=tensor(size=(True, 6))), "whole number"),
    "one number, very often": (
        named(a=tensor(size=(2**20, 2**20), stride=(0, 0))),
        "than it has b",
    ),
    "none, very large": (
        named(a=tensor(size=(0, 2**62, 2**62), stride=(1, 1, 1))),
        "than it has b",
    ),
    "two of one name": (
        named(a=tensor(), b=tensor(size=(5,), stride=(1,), held=storage(count=5))),
        "two storages of one name",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_no_tree_of_tensors_is_refused_in_one_line(read, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree, told = HOSTILE[what]
    with pytest.raises(WeightsError, match=told) as error:
        read(written(tree))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    assert not Path("executed").exists()
    with pytest.raises(WeightsError):  # nor in the place of the number that a file begins with
        read(b"\x80\x02" + tree + b".")
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "pickle exhausted"),
        (b"PK\x03\x04", "zip format, which PyTorch reads"),
        (pickle.dumps({"a": 1}, 2), "does not begin as one"),
        (written(named(a=tensor()), machine={"little_endian": False}), "the other way round"),
        (written(named(a=tensor()), machine=1), "the other way round"),
        (written(named(a=tensor()), keys=["1"]), "are not those of its tensors"),
        (written(named(a=tensor()), keys=["0", "0"]), "are not those of its tensors"),
        (written(named(a=tensor()), keys=7), "are not those of its tensors"),
        (written(named(a=tensor()), {"0": SIX[:5]}), "a storage is cut off, or longer"),
        (written(named(a=tensor())) + b"\0", "there is more after the last storage"),
    ],
)
def test_a_file_of_another_kind_is_refused_in_one_line(read, content, told):
    with pytest.raises(WeightsError, match=told) as error:
        read(content)
    assert "\n" not in str(error.value)


def test_a_file_that_is_cut_off_anywhere_is_refused(read):
    content = written(named(a=tensor(), b=tensor(size=(2,), stride=(1,))))
    assert read(content).keys() == {"a", "b"}
    for length in range(len(content)):
        with pytest.raises(WeightsError):
            read(content[:length])


def test_damage_gives_numbers_or_one_line_and_nothing_else(read):
    content = written(named(a=tensor(), b=tensor(size=(2,), stride=(1,))))
    draw = random.Random(0)
    refused = 0
    for _ in range(3000):
        damaged = bytearray(content)
        for _ in range(draw.choice((1, 1, 2, 8))):
            damaged[draw.randrange(len(content))] = draw.randrange(256)
        try:
            read(bytes(damaged))
        except WeightsError:
            refused += 1
    assert refused > 1500


@pytest.mark.proofs
def test_pytorch_reads_the_same(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the extra torch")
    layer = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state = layer.state_dict()
    state["turned"] = state["0.weight"].permute(2, 3, 1, 0)
    state["part"] = state["0.weight"][1:, ::2]
    for kind in ("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"):
        state[kind] = torch.arange(7).to(getattr(torch, kind))
    state["bool"] = torch.arange(7) % 2 == 0
    path = tmp_path / "saved.pth"
    torch.save({"state_dict": state, "epoch": 3}, path, _use_new_zipfile_serialization=False)
    theirs, _ = files.read(path)
    ours = tensor_pickle.read(path)["state_dict"]
    assert theirs.keys() == ours.keys() == state.keys()
    for each, array in theirs.items():
        np.testing.assert_array_equal(ours[each].array(), array)
