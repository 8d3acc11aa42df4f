"""One training step per method, written out in plain PyTorch: no Lightning, no generator, no foreach.

Each function does what its paper's text says, in order, for one batch; the tests compare the weights it leaves with
those of the module. Random draws come from the same functions in the same order, so that both see the same ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from uda_seg.ops.augment import draw_strong, strong_augment
from uda_seg.ops.masking import draw_block_mask
from uda_seg.ops.mixing import draw_classes


def ce(logits, label, weight=None):
    """Mean over all pixels, ignored ones included with 0, one pixel's softmax at a time in float64-free float32."""
    logits = F.interpolate(logits.float(), label.shape[-2:], mode="bilinear", align_corners=False)
    log_probability = logits.log_softmax(1)
    keep = label != 255
    picked = log_probability.gather(1, label.long().where(keep, torch.zeros(())).long()[:, None])[:, 0]
    loss = -picked * keep
    return (loss if weight is None else loss * weight).sum() / label.numel()


def logits_of(network, image, head="main", **context):
    stages = network.encoder((image - network.mean) / network.std)
    module = network.heads[head]
    return module.classify(module.fuse(stages), **context), stages


def ema(teacher, student, step, alpha):
    """One tensor at a time, min(1 - 1/(t+1), alpha)."""
    decay = min(1 - 1 / (step + 1), alpha)
    theirs = dict(student.named_parameters()) | dict(student.named_buffers())
    with torch.no_grad():
        for name, mine in [*teacher.named_parameters(), *teacher.named_buffers()]:
            if mine.is_floating_point():
                mine.copy_(decay * mine + (1 - decay) * theirs[name])


def label_target(teacher, image, threshold, head="main", **context):
    with torch.no_grad():
        logits = logits_of(teacher, image, head, **context)[0]
        logits = F.interpolate(logits.float(), image.shape[-2:], mode="bilinear", align_corners=False)
        confidence, label = logits.softmax(1).max(1)
    quality = sum(float(c >= threshold) for c in confidence.flatten()) / confidence.numel()
    return label, torch.full(label.shape, quality)


def mix(x_s, y_s, x_t, y_t, w_t, classes):
    """Pixel by class, image by image."""
    table = draw_classes(y_s, classes)
    x, y, w = x_t.clone(), y_t.clone(), w_t.clone()
    for b in range(len(x_s)):
        for value in range(256):
            if table[b, value]:
                here = y_s[b] == value
                x[b, :, here] = x_s[b, :, here]
                y[b, here] = y_s[b, here].long()
                w[b, here] = 1.0
    return strong_augment(x, draw_strong(len(x))), y, w


def mask(network, image, block, ratio):
    visible = draw_block_mask(len(image), tuple(image.shape[-2:]), block, ratio)
    return image * visible + network.mean * ~visible


def supervise_masked(student, image, label, weight=None, head="main", **context):
    """Backward of the loss on masked images, after which the encoder's running statistics are what they were."""
    before = {name: b.clone() for name, b in student.encoder.named_buffers()}
    ce(logits_of(student, image, head, **context)[0], label, weight).backward()
    for name, b in student.encoder.named_buffers():
        if b.is_floating_point():
            b.copy_(before[name])


def source_only(student, batch, **_):
    ce(logits_of(student, batch["x_s"])[0], batch["y_s"]).backward()


def dacs(student, batch, *, teacher, threshold, classes, mask_block=None, mask_ratio=None, **_):
    ce(logits_of(student, batch["x_s"])[0], batch["y_s"]).backward()
    y_t, w_t = label_target(teacher, batch["x_t"], threshold)
    x_m, y_m, w_m = mix(batch["x_s"], batch["y_s"], batch["x_t"], y_t, w_t, classes)
    ce(logits_of(student, x_m)[0], y_m, w_m).backward()
    if mask_block is not None:
        x = mask(student, strong_augment(batch["x_t"], draw_strong(len(batch["x_t"]))), mask_block, mask_ratio)
        supervise_masked(student, x, y_t, w_t)


def daformer(student, batch, *, reference, things, weight, **rest):
    """As DACS, with the feature distance computed cell by cell."""
    logits, stages = logits_of(student, batch["x_s"])
    with torch.no_grad():
        start = reference((batch["x_s"] - student.mean) / student.std)[-1]
    features, label = stages[-1], batch["y_s"]
    side = label.shape[-1] // features.shape[-1]
    distances = []
    for b in range(features.shape[0]):
        for i in range(features.shape[2]):
            for j in range(features.shape[3]):
                cell = label[b, i * side : (i + 1) * side, j * side : (j + 1) * side].flatten().tolist()
                winner = max(set(cell), key=cell.count)
                if winner in things and cell.count(winner) / len(cell) >= 0.75:
                    distances.append((features[b, :, i, j] - start[b, :, i, j]).norm())
    distance = torch.stack(distances).mean() if distances else features.sum() * 0
    (ce(logits, label) + weight * distance).backward()
    y_t, w_t = label_target(rest["teacher"], batch["x_t"], rest["threshold"])
    x_m, y_m, w_m = mix(batch["x_s"], label, batch["x_t"], y_t, w_t, rest["classes"])
    ce(logits_of(student, x_m)[0], y_m, w_m).backward()


def lcmsm(student, batch, *, teacher, threshold, classes, mask_block, mask_ratio, project, **_):
    """Source; masked source; pseudo-labels by the teacher's language head; mix; masked mix."""

    def masked(image, label, weight=None):
        image = mask(student, strong_augment(image, draw_strong(len(image))), mask_block, mask_ratio)
        supervise_masked(student, image, label, weight, "language", text=project())

    ce(logits_of(student, batch["x_s"])[0], batch["y_s"]).backward()
    masked(batch["x_s"], batch["y_s"])
    text = project().detach()
    y_t, w_t = label_target(teacher, batch["x_t"], threshold, "language", text=text)
    x_m, y_m, w_m = mix(batch["x_s"], batch["y_s"], batch["x_t"], y_t, w_t, classes)
    ce(logits_of(student, x_m)[0], y_m, w_m).backward()
    masked(x_m, y_m, w_m)
