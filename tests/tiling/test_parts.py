from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from torchgeo_debias.tiling.parts import Part, join, pack, unpack

DTYPES = ["?", "i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", ">u2", "<f2", "<f4", "<f8"]


def check(found: Part, expected: Part) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (3, 0), (1,), (7, 5), (120, 130), (2, 90, 70), (20_000,)])
def test_every_type_and_shape_comes_back_as_it_was(dtype: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 2, (2, *shape)) * 100
    part: Part = {"one": values[0].astype(dtype), "two": values[1].astype(dtype)}
    check(unpack(pack(part)), part)


@settings(max_examples=40)
@given(
    array=hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(max_dims=3, max_side=30, min_side=0)), times=st.just(9)
)
def test_any_array_comes_back_whatever_its_memory_looks_like(array: npt.NDArray[Any], times: int) -> None:
    large = np.concatenate([array] * times)
    part: Part = {"plain": large, "turned": large.T, "sparse": large[::2], "flipped": large[::-1]}
    check(unpack(pack(part)), part)


def test_only_what_is_asked_for() -> None:
    part: Part = {"ids": np.zeros((200, 100), np.uint8), "scores": np.ones((5, 2)), "a:b": np.zeros(9000, np.uint16)}
    data = pack(part)
    check(unpack(data, ["scores"]), {"scores": part["scores"]})
    check(unpack(data, ["ids", "a:b", "unknown"]), {"ids": part["ids"], "a:b": part["a:b"]})
    assert unpack(data, []) == {}


def test_maps_shrink() -> None:
    ids = np.repeat(np.arange(8, dtype=np.uint8), 4096 * 16).reshape(512, -1)
    assert len(pack({"ids": ids})) < ids.nbytes / 100
    assert pack({"ids": ids}) == pack({"ids": ids})


def test_join_puts_one_after_the_other() -> None:
    parts: list[Part] = [{"a": np.arange(n), "b": np.ones((n, 3), np.uint8)} for n in (2, 0, 3)]
    check(join(parts), {"a": np.array([0, 1, 0, 1, 2]), "b": np.ones((5, 3), np.uint8)})
    check(join(parts[:1]), parts[0])


def test_no_pickles() -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        pack({"objects": np.array([{}], dtype=object)})
    file = io.BytesIO()
    np.savez(file, objects=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        unpack(file.getvalue())
