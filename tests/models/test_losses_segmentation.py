import pytest
import torch
import torch.nn.functional as F

from sbce_hf.models.losses_segmentation import segmentation_loss

IGNORE = 255


@pytest.fixture
def batch():
    """Six images with ignored pixels; the shares of foreground differ, one image has none, one has no valid pixel."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, 5, 7, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 4, (6, 10, 14), generator=generator)
    labels[:3][torch.rand(3, 10, 14, generator=generator) < 0.8] = 0
    labels[1] = 0
    labels[torch.rand(6, 10, 14, generator=generator) < 0.2] = IGNORE
    labels[4] = IGNORE
    return logits.requires_grad_(), labels


def upsampled(logits, labels):
    return F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


def test_is_the_cross_entropy_of_upsampled_logits_over_valid_pixels(batch):
    logits, labels = batch
    expected = F.cross_entropy(upsampled(logits, labels), labels, ignore_index=IGNORE)
    loss = segmentation_loss(logits, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, logits), gradient(expected, logits))


def test_one_pixel_by_hand():
    logits = torch.tensor([0.0, 0.0, 2.0]).reshape(1, 3, 1, 1)
    expected = torch.tensor(2.0).exp().add(2).log() - 2
    torch.testing.assert_close(segmentation_loss(logits, torch.tensor([[[2]]])), expected)


def test_labels_may_be_bytes(batch):
    logits, labels = batch
    assert segmentation_loss(logits, labels.to(torch.uint8)) == segmentation_loss(logits, labels)


@pytest.mark.parametrize("balanced", [False, True])
def test_ignored_pixels_do_not_count(balanced):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 4, 4, generator=generator).requires_grad_()
    labels = torch.randint(0, 3, (2, 4, 4), generator=generator)
    labels[0, 1:3] = IGNORE
    loss = segmentation_loss(logits, labels, balanced=balanced)
    ignored = (labels == IGNORE)[:, None].expand_as(logits)
    grad = gradient(loss, logits)
    assert not grad[ignored].any() and grad[~ignored].all()
    changed = torch.where(ignored, logits + 100, logits)
    assert segmentation_loss(changed, labels, balanced=balanced) == loss
    other = torch.where(labels == IGNORE, -100, labels)
    assert segmentation_loss(logits, other, ignore_index=-100, balanced=balanced) == loss


def test_balanced_is_the_mean_of_the_two_sides_means(batch):
    logits, labels = batch
    losses = F.cross_entropy(upsampled(logits, labels), labels, ignore_index=IGNORE, reduction="none")
    foreground, background = losses[(labels > 0) & (labels < IGNORE)], losses[labels == 0]
    assert len(foreground) != len(background)
    expected = (foreground.mean() + background.mean()) / 2
    torch.testing.assert_close(segmentation_loss(logits, labels, balanced=True), expected)


def test_balanced_does_not_depend_on_the_size_of_the_object():
    logits = torch.zeros(1, 2, 8, 8)
    logits[:, 0] = 1.0
    losses = []
    for pixels in (1, 9, 60):
        labels = torch.zeros(1, 64, dtype=torch.long)
        labels[:, :pixels] = 1
        losses.append(segmentation_loss(logits, labels.reshape(1, 8, 8), balanced=True))
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses[0], losses[2])


@pytest.mark.parametrize("label", [0, 1])
def test_balanced_leaves_out_a_side_without_pixels(label):
    logits = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    labels = torch.full((1, 4, 4), label)
    torch.testing.assert_close(segmentation_loss(logits, labels, balanced=True), F.cross_entropy(logits, labels))


@pytest.mark.parametrize("balanced", [False, True])
def test_without_valid_pixels_it_is_zero_with_zero_gradient(balanced):
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((2, 8, 8), IGNORE), balanced=balanced)
    assert loss == 0 and not gradient(loss, logits).any()


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("splits", [[3, 3], [2, 2, 2], [1, 4, 1]])
def test_average_over_processes_is_the_one_process_loss_and_gradient(batch, balanced, splits):
    logits, labels = batch
    whole = segmentation_loss(logits, labels, balanced=balanced)
    counts = []

    def record(count):
        counts.append(count)
        return count

    parts = list(zip(logits.split(splits), labels.split(splits), strict=True))
    for part in parts:
        segmentation_loss(*part, balanced=balanced, reduce=record)
    total = torch.stack(counts).sum(dim=0)
    losses = [segmentation_loss(*part, balanced=balanced, reduce=lambda count: total) for part in parts]
    mean = torch.stack(losses).mean()
    torch.testing.assert_close(mean, whole)
    torch.testing.assert_close(gradient(mean, logits), gradient(whole, logits))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_give_a_float32_loss(batch, dtype):
    logits, labels = batch
    half = (logits.detach() * 1000).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = segmentation_loss(half, labels)
    assert loss.dtype == torch.float32 and loss.isfinite() and gradient(loss, half).isfinite().all()
    torch.testing.assert_close(loss, segmentation_loss(half.float(), labels))
