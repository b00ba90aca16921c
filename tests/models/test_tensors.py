"""Writing safetensors files."""

import os

import numpy as np
import pytest
from safetensors import safe_open

from fracture_lib.models.tensors import write_tensors


def test_write_tensors_keeps_values_types_and_metadata(tmp_path):
    half = np.arange(6, dtype=np.float16).reshape(2, 3)
    write_tensors(tmp_path / "x.safetensors", {"half": half, "turned": half.T, "n": np.array(3)}, {"a": "b"})
    with safe_open(tmp_path / "x.safetensors", "np") as file:
        assert file.metadata() == {"a": "b"}
        assert file.get_tensor("half").dtype == np.float16 and file.get_tensor("n") == 3
        np.testing.assert_array_equal(file.get_tensor("turned"), half.T)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_write_tensors_gives_the_permissions_of_the_umask(tmp_path, umask, mode):
    previous = os.umask(umask)
    try:
        write_tensors(tmp_path / "x.safetensors", {"x": np.zeros(3)})
    finally:
        os.umask(previous)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == mode
