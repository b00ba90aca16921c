import numpy as np
import pytest

from fracture_lib.data.stored import CHUNK_SIZE, StoredArrays, stack_chunks


def test_stored_arrays_return_arrays_of_different_shapes_in_any_order(tmp_path):
    rng = np.random.default_rng(0)
    arrays = [rng.random(shape, np.float32) for shape in ((3, 5), (4, 2), (1, 2, 3), (6,))]
    stored = StoredArrays(tmp_path / "arrays.bin", iter(arrays))
    assert len(stored) == 4
    for index in (2, 0, 3, 1, np.int64(2)):
        np.testing.assert_array_equal(stored[index], arrays[index])
    for array, expected in zip(stored, arrays, strict=True):
        np.testing.assert_array_equal(array, expected)


def test_stored_arrays_store_views_with_any_strides(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    stored = StoredArrays(tmp_path / "arrays.bin", [array[:, ::-1], array.T])
    np.testing.assert_array_equal(stored[0], array[:, ::-1])
    np.testing.assert_array_equal(stored[1], array.T)


@pytest.mark.parametrize(("n", "sizes"), [(0, []), (3, [3]), (CHUNK_SIZE, [CHUNK_SIZE])])
def test_stack_chunks_keeps_all_arrays_in_order(n, sizes):
    chunks = list(stack_chunks(np.full(2, i, np.float32) for i in range(n)))
    assert [len(chunk) for chunk in chunks] == sizes
    assert [value for chunk in chunks for value in chunk[:, 0]] == list(range(n))


def test_stack_chunks_reads_no_further_than_the_chunk():
    read = []
    next(stack_chunks(read.append(i) or np.zeros(1, np.float32) for i in range(2 * CHUNK_SIZE)))
    assert len(read) == CHUNK_SIZE
