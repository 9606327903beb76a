"""Image processor of the DeepLab segmentation networks."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling, SizeDict
from transformers.modeling_outputs import SemanticSegmenterOutput


class DeepLabImageProcessor(TorchvisionBackend):
    """Scales to [0, 1] and normalises as for ImageNet; images keep their size unless one is given.

    Args:
        size (`dict`, *optional*): `{"longest_edge": n}` resizes the longer side to `n` pixels and keeps the aspect;
            every other size of transformers works as well. Giving one sets `do_resize`.

    Examples:
        >>> from PIL import Image
        >>> from sbce_hf import DeepLabConfig, DeepLabForSemanticSegmentation, DeepLabImageProcessor
        >>> photo = Image.new("RGB", (90, 60), "orange")
        >>> processor = DeepLabImageProcessor(size={"longest_edge": 72})
        >>> inputs = processor(photo, return_tensors="pt")
        >>> inputs.pixel_values.shape
        torch.Size([1, 3, 48, 72])
        >>> model = DeepLabForSemanticSegmentation(DeepLabConfig(trunk="test_resnet", num_labels=3)).eval()
        >>> processor.post_process_semantic_segmentation(model(**inputs), [(60, 90)])[0].shape
        torch.Size([60, 90])
    """

    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = None
    default_to_square = True
    do_convert_rgb = True
    do_resize = False
    do_rescale = True
    do_normalize = True
    rescale_factor = 1 / 255

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("do_resize", kwargs.get("size") is not None)
        super().__init__(**kwargs)

    def resize(self, image: Tensor, size: SizeDict, *args: Any, **kwargs: Any) -> Tensor:
        """Resize `(..., H, W)` images; transformers itself does not know a longest edge alone."""
        if size.longest_edge and not size.shortest_edge:
            factor = size.longest_edge / max(image.shape[-2:])
            height, width = (max(1, round(factor * side)) for side in image.shape[-2:])
            size = SizeDict(height=height, width=width)
        return super().resize(image, size, *args, **kwargs)

    def post_process_semantic_segmentation(
        self, outputs: SemanticSegmenterOutput, target_sizes: list[tuple[int, int]] | None = None
    ) -> list[Tensor]:
        """Turn logits into label maps: bilinear upsampling, then the highest logit of each pixel.

        Args:
            outputs (`SemanticSegmenterOutput`): of one forward pass.
            target_sizes (`list[tuple[int, int]]`, *optional*): height and width per image; by default the logits' own.

        Returns:
            `list[torch.LongTensor]`: one `(H, W)` map of label values per image.

        Raises:
            ValueError: no logits, or `target_sizes` and the batch differ in length.
        """
        if outputs.logits is None:
            raise ValueError("outputs: expected logits, as the model returns them")
        logits = outputs.logits.float()
        if target_sizes is None:
            return list(logits.argmax(dim=1))
        if len(target_sizes) != len(logits):
            raise ValueError(
                f"target_sizes: got {len(target_sizes)} sizes for {len(logits)} images, expected one each"
            )
        label_maps = []
        for image, target_size in zip(logits, target_sizes, strict=True):
            size = tuple(int(side) for side in target_size)
            upsampled = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)
            label_maps.append(upsampled[0].argmax(dim=0))
        return label_maps


DeepLabImageProcessor.register_for_auto_class()

__all__ = ["DeepLabImageProcessor"]
