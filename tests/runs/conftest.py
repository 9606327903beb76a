import pytest
from PIL import Image

from sbce_hf.config import load_recipe
from sbce_hf.data import load_images


@pytest.fixture
def photos(tmp_path, tiny_recipe):
    """The embedded example as a folder of files, with masks."""
    # One more than fill the batches of an epoch.
    shapes = load_images(load_recipe(str(tiny_recipe), {"data": {"shapes_images": 13}}).data, "train")
    lines = ["file,tags"]
    for folder in ("images", "masks"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
    for index, image_id in enumerate(shapes.image_ids):
        shapes.image(index).save(tmp_path / "photos" / "images" / f"{image_id}.png")
        Image.fromarray(shapes.mask(index)).save(tmp_path / "photos" / "masks" / f"{image_id}.png")
        tags = [name for name, there in zip(shapes.class_names, shapes.labels(index), strict=True) if there]
        lines.append(f"{image_id}.png,{';'.join(tags)}")
    (tmp_path / "photos" / "tags.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "photos"
