"""Grey of more than 8 bits: exact, in little memory."""

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from sbce_hf.data.grey import _quantiles, scaled_to_8_bits

KINDS = ("u1", "i1", "u2", ">u2", "<i2", "<u4", "<i4", ">i4", "<i8", "f2", "<f4", ">f4", "f8")


def values_of(kind):
    elements = arrays.from_dtype(np.dtype(kind), allow_nan=False)
    return arrays.arrays(kind, st.integers(1, 40), elements=elements)


@given(st.sampled_from(KINDS).flatmap(values_of), st.lists(st.floats(0, 1), max_size=3), st.integers(1, 9))
def test_ranks_are_exact(values, shares, step):
    count, ordered = len(values), np.sort(values)
    shares = [*(round(share * (count - 1)) / max(count - 1, 1) for share in shares), 0.0, 1.0]
    found = _quantiles(lambda: (values[start : start + step] for start in range(0, count, step)), count, shares)
    for share, value in zip(shares, found, strict=True):
        place = share * (count - 1)
        if place == int(place):
            assert value == float(ordered[int(place)]) or (np.isinf(ordered).any() and np.isnan(value))


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_quantiles_are_numpys(kind):
    values = np.random.default_rng(0).normal(50, 20, 997).astype(kind)
    shares = (0.0, 0.001, 0.3333, 0.5, 0.999, 1.0)
    found = _quantiles(lambda: (values[start : start + 100] for start in range(0, 997, 100)), 997, shares)
    assert found == pytest.approx(np.quantile(values.astype(float), shares).tolist(), rel=1e-12)


def test_large_grey_takes_little_more_memory_than_itself():
    values = np.zeros((1500, 2000), np.uint16)
    values[:700] = np.arange(2000)
    tracemalloc.start()
    grey, own_range = scaled_to_8_bits(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert own_range and grey[0, 0] == 0 and grey[0, -1] == 255
    # The result, of one byte a pixel; and what is worked on.
    assert peak < values.size + 16e6


DECODE = """
import re, sys
from pathlib import Path
from sbce_hf.data.decoding import decode_image

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", STATUS.read_text())[1])

STATUS = Path("/proc/self/status")
decode_image(sys.argv[1])
before = peak()
assert decode_image(sys.argv[2]).size == (5000, 4000)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc/self/status to read the peak from")
def test_a_large_picture_of_floating_point_is_decoded_in_little_more_memory_than_its_own(tmp_path):
    for name, size in {"small": (50, 40), "large": (5000, 4000)}.items():
        ramp = np.linspace(0, 900, size[0], dtype=np.float32)
        Image.fromarray(np.broadcast_to(ramp, size[::-1]).copy()).save(tmp_path / f"{name}.tif")
    run = [sys.executable, "-c", DECODE, tmp_path / "small.tif", tmp_path / "large.tif"]
    kilobytes = int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    # Four bytes a pixel, and one of the result; then four of colours, and that one.
    assert 4 * 20e6 < 1024 * kilobytes < 1.5 * 4 * 20e6
