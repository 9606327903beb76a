"""Image processor of the Spatial-BCE classifier."""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling

from .modeling_spatial_bce import SpatialBceOutput


class SpatialBceImageProcessor(TorchvisionBackend):
    """Resizes to the training size (the aspect is not kept), scales to [0, 1], normalises as for ImageNet.

    Examples:
        >>> import torch
        >>> from PIL import Image
        >>> from sbce_hf import SpatialBceConfig, SpatialBceForImageClassification, SpatialBceImageProcessor
        >>> photo = Image.new("RGB", (90, 60), "orange")
        >>> processor = SpatialBceImageProcessor(size={"height": 64, "width": 64})
        >>> inputs = processor(photo, return_tensors="pt")
        >>> inputs.pixel_values.shape
        torch.Size([1, 3, 64, 64])
        >>> model = SpatialBceForImageClassification(SpatialBceConfig(trunk="test_resnet", num_labels=2)).eval()
        >>> known = torch.tensor([[0, 1]])  # the second class is on the photo
        >>> label_maps = processor.post_process_semantic_segmentation(model(**inputs), [(60, 90)], known)
        >>> label_maps[0].shape, set(label_maps[0].flatten().tolist()) <= {0, 2}
        (torch.Size([60, 90]), True)
    """

    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 369, "width": 369}
    default_to_square = True
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    rescale_factor = 1 / 255

    def post_process_semantic_segmentation(
        self,
        outputs: SpatialBceOutput,
        target_sizes: list[tuple[int, int]] | None = None,
        labels: Tensor | None = None,
        class_threshold: float = 0.5,
    ) -> list[Tensor]:
        """Turn class maps and thresholds into label maps with the paper's rule (method of sec. 3.3).

        Args:
            outputs ([`SpatialBceOutput`]): of one forward pass.
            target_sizes (`list[tuple[int, int]]`, *optional*): height and width per image; by default the map's own.
            labels (`torch.Tensor` of shape `(B, C)`, *optional*): 1 for a class known to be present. By default the
                classes whose image-level probability exceeds `class_threshold`.
            class_threshold (`float`, defaults to 0.5): see `labels`.

        Returns:
            `list[torch.LongTensor]`: one `(H, W)` map per image; 0 is background, `c + 1` the model's class `c`.

        Raises:
            ValueError: an output is missing, or `target_sizes` and the batch differ in length.
        """
        if outputs.pixel_logits is None or outputs.logits is None or outputs.thresholds is None:
            raise ValueError("outputs: expected pixel_logits, logits and thresholds, as the model returns them")
        logits = outputs.pixel_logits.float()
        if target_sizes is not None and len(target_sizes) != len(logits):
            raise ValueError(
                f"target_sizes: got {len(target_sizes)} sizes for {len(logits)} images, expected one each"
            )
        known = outputs.logits.sigmoid() > class_threshold if labels is None else labels > 0
        label_maps = []
        for i, maps in enumerate(logits):
            if target_sizes is not None:
                size = tuple(int(side) for side in target_sizes[i])
                maps = F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
            scores = maps.sigmoid() - outputs.thresholds[i].float()[:, None, None]
            scores = scores.masked_fill(~known[i][:, None, None], -1.0)
            best = scores.max(dim=0)
            label_maps.append(torch.where(best.values > 0, best.indices + 1, 0))
        return label_maps


SpatialBceImageProcessor.register_for_auto_class()

__all__ = ["SpatialBceImageProcessor"]
