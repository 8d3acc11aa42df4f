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


def berhu(prediction, z):
    """The valid pixels of the batch in one list (test_depth.py has the loop)."""
    error = (prediction - z).abs()[z != 1.0]
    c = 0.2 * error.max().detach()
    small, large = error[error <= c], error[error > c]
    return (small.sum() + ((large**2 + c**2) / (2 * c)).sum()) / len(error)


def corda_tasks(student, image):
    """The two-task network written out, from the stages to six maps at the image's size."""
    head, main = student.heads["two_task"], student.heads["main"]
    shared = main.fuse(student.encoder((image - student.mean) / student.std))
    f_s, f_d = head.segmentation_features(shared), head.depth_features(shared)
    to_s, to_d = head.to_segmentation, head.to_depth
    g_s = f_s + to_s.conv(f_d) * torch.sigmoid(to_s.gate(f_d))
    g_d = f_d + to_d.conv(f_s) * torch.sigmoid(to_d.gate(f_s))

    def pyramid(module, features):
        return sum(conv(features) for conv in module.conv2d_list)

    maps = (
        pyramid(head.segmentation, g_s), pyramid(head.source_depth, g_d), pyramid(head.target_depth, g_d),
        head.initial_segmentation(f_s), head.initial_source_depth(f_d), head.initial_target_depth(f_d),
    )  # fmt: skip
    return [F.interpolate(m, image.shape[-2:], mode="bilinear", align_corners=False) for m in maps]


def corda(student, batch, *, teacher, threshold, classes, **_):
    """Source: both segmentations and the source decoders' depth. Mixture: the same, weighted by the discrepancy."""
    s, d_s, _, s0, d_s0, _ = corda_tasks(student, batch["x_s"])
    labelled = batch["y_s"].numel() / (batch["y_s"] != 255).sum()
    depth = berhu(d_s, batch["z_s"]) + berhu(d_s0, batch["z_s"])
    ((ce(s, batch["y_s"]) + ce(s0, batch["y_s"])) * labelled + 0.01 * depth).backward()
    with torch.no_grad():
        confidence, y_t = corda_tasks(teacher, batch["x_t"])[0].softmax(1).max(1)
    quality = (confidence >= threshold).float().mean()
    table = draw_classes(batch["y_s"], classes)
    keep = torch.stack([table[b][batch["y_s"][b].long()] for b in range(len(y_t))])
    x_m = torch.where(keep[:, None], batch["x_s"], batch["x_t"])
    x_m = strong_augment(x_m, draw_strong(len(x_m), strength=0.25))
    y_m = torch.where(keep, batch["y_s"].long(), y_t)
    z_m = torch.where(keep[:, None], batch["z_s"], batch["z_t"])
    s, d_s, d_t, s0, d_s0, d_t0 = corda_tasks(student, x_m)
    w = torch.relu(1 - (d_s - d_t).detach().abs() / z_m) + 1e-3
    w = (w + (z_m == 1.0)).clamp(0, 1)[:, 0]
    weight = torch.where(keep, 1.0, quality) * w / w.mean()
    d_m, d_m0 = torch.where(keep[:, None], d_s, d_t), torch.where(keep[:, None], d_s0, d_t0)
    (ce(s, y_m, weight) + ce(s0, y_m, weight) + 0.001 * (berhu(d_m, z_m) + berhu(d_m0, z_m))).backward()


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
