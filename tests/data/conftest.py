import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    """A user's folder before its tags: two photos in images/."""
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (8, 6), (200, 30, 60)).save(tmp_path / "images" / name)
    return tmp_path
