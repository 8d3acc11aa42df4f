"""One training step per method, written out in plain PyTorch: no Lightning, no generator, no foreach.

Each function does what its paper's text says, in order, for one batch; the tests compare the weights it leaves with
those of the module. Random draws come from the same functions in the same order, so that both see the same ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from uda_seg.ops.augment import draw_strong, strong_augment
from uda_seg.ops.contrast import draw_equal_negatives, draw_of_class, group_by_class
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


def dacs(student, batch, *, teacher, threshold, classes, mask_block=None, mask_ratio=None, both=False, **_):
    ce(logits_of(student, batch["x_s"])[0], batch["y_s"]).backward()
    y_t, w_t = label_target(teacher, batch["x_t"], threshold)
    x_m, y_m, w_m = mix(batch["x_s"], batch["y_s"], batch["x_t"], y_t, w_t, classes)
    ce(logits_of(student, x_m)[0], y_m, w_m).backward()
    if mask_block is not None:
        x = batch["x_t"]
        if both:  # image 0 of each domain, in their natural colours
            x, y_t = torch.stack([batch["x_s"][0], x[0]]), torch.stack([batch["y_s"][0].long(), y_t[0]])
            w_t = torch.stack([torch.ones_like(w_t[0]), w_t[0]])
        else:
            x = strong_augment(x, draw_strong(len(x)))
        supervise_masked(student, mask(student, x, mask_block, mask_ratio), y_t, w_t)


def dacs_released(student, batch, *, teacher, threshold, classes, **_):
    """DACS's own trainer: means over labelled pixels, images mixed and augmented one by one, in BGR."""
    labelled = batch["y_s"].numel() / (batch["y_s"] != 255).sum()
    (ce(logits_of(student, batch["x_s"])[0], batch["y_s"]) * labelled).backward()
    y_t, w_t = label_target(teacher, batch["x_t"], threshold)
    table = draw_classes(batch["y_s"], classes, "image_and_ignore")
    x, y, w = batch["x_t"].clone(), y_t.clone(), w_t.clone()
    for b in range(len(x)):
        for value in torch.nonzero(table[b])[:, 0].tolist():
            here = batch["y_s"][b] == value
            x[b, :, here] = batch["x_s"][b, :, here]
            y[b, here], w[b, here] = value, 1.0
    drawn = draw_strong(len(x), strength=0.25, own_order=True)
    x = torch.cat([strong_augment(x[b : b + 1].flip(1), drawn.of(b)).flip(1) for b in range(len(x))])
    ce(logits_of(student, x)[0], y, w).backward()


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


def distilled(student, batch, *, reference, weight, **rest):
    """As DACS, with the distance to the initial encoder on source and target, cell by cell and channel by channel."""

    def start(image):
        with torch.no_grad():
            return reference((image - student.mean) / student.std)[-1]

    logits, stages = logits_of(student, batch["x_s"])
    (ce(logits, batch["y_s"]) + weight * feature_loop(stages[-1], start(batch["x_s"]))).backward()
    before = {name: b.clone() for name, b in student.encoder.named_buffers()}
    stages = student.encoder((batch["x_t"] - student.mean) / student.std)
    (weight * feature_loop(stages[-1], start(batch["x_t"]))).backward()
    for name, b in student.encoder.named_buffers():
        if b.is_floating_point():
            b.copy_(before[name])
    y_t, w_t = label_target(rest["teacher"], batch["x_t"], rest["threshold"])
    x_m, y_m, w_m = mix(batch["x_s"], batch["y_s"], batch["x_t"], y_t, w_t, rest["classes"])
    ce(logits_of(student, x_m)[0], y_m, w_m).backward()


def feature_loop(features, start):
    """0.9 (1 - cos) + 0.1 Huber, a number at a time."""
    cells = []
    for b in range(features.shape[0]):
        for i in range(features.shape[2]):
            for j in range(features.shape[3]):
                f, s = features[b, :, i, j], start[b, :, i, j]
                cosine = sum(x * y for x, y in zip(f, s, strict=True)) / (sum(f * f) * sum(s * s)) ** 0.5
                gaps = [abs(x - y) for x, y in zip(f, s, strict=True)]
                huber = sum(gap**2 / 2 if gap < 1 else gap - 0.5 for gap in gaps) / len(gaps)
                cells.append(0.9 * (1 - cosine) + 0.1 * huber)
    return sum(cells) / len(cells)


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


def bicl(student, batch, y_f, xi, rung, temperature, threshold, momentum, augmented=False):
    """Pair by pair, class by class, pixel by pixel; `xi` [K, D] is moved in place."""
    x_s = strong_augment(batch["x_s"], draw_strong(len(batch["x_s"]))) if augmented else batch["x_s"]
    s, _ = logits_of(student, x_s)
    y_s, labelled = batch["y_s"], (y_f != 255).float().mean()
    loss = ce(s, y_s) + 0.4 * shannon(s)
    if rung > 0:
        t, _ = logits_of(student, batch["x_t"])
        loss = loss + 0.3 * ce(t, y_f) / labelled + 0.4 * 0.3 * shannon(t)
    moves = {}
    if rung > 1:
        size = s.shape[-2:]
        step = (y_s.shape[-2] // size[0], y_s.shape[-1] // size[1])
        forward, backward = [], []
        for b in range(len(s)):
            # The pixel nearest to the centre of a cell of even side is the one right below the centre.
            mine, static = (y[b, step[0] // 2 :: step[0], step[1] // 2 :: step[1]] for y in (y_s, y_f))
            rho_s = {c: s[b][:, mine == c].mean(1) for c in range(19) if (mine == c).any()}
            hybrid = static.clone()
            if rung >= 4:
                odds = cosines(t[b], {c: rho + xi[c] for c, rho in rho_s.items()}).div(temperature).exp()
                share = odds / (odds.sum(0) + (19 - len(odds)) * odds.min(0).values)
                for i, j in torch.nonzero(static == 255).tolist():
                    if share[:, i, j].max() > threshold:
                        hybrid[i, j] = list(rho_s)[int(share[:, i, j].argmax())]
            rho_t = {c: t[b][:, hybrid == c].mean(1) for c in range(19) if (hybrid == c).any()}
            common = set(rho_s) & set(rho_t)
            for c in common:
                moves.setdefault(c, []).append((rho_t[c] - rho_s[c]).detach())
            forward.append(pixel_contrast(t[b], hybrid, rho_s, common, temperature))
            backward.append(pixel_contrast(s[b], mine, rho_t, common, temperature))
        loss = loss + 0.2 * sum(forward) / len(forward)
        if rung > 2:
            loss = loss + 0.2 * sum(backward) / len(backward)
    loss.backward()
    if rung > 4:
        for c, found in moves.items():
            xi[c] = momentum * xi[c] + (1 - momentum) * sum(found) / len(found)


def shannon(logits):
    probability = logits.softmax(1)
    return -(probability * probability.log()).sum(1).mean()


def cosines(features, prototypes):
    """Of every pixel with every prototype, one prototype at a time: [C, h, w]; 0 of a pixel without any activation."""
    length = features.norm(dim=0).clamp_min(1e-12)
    return torch.stack([(features * p[:, None, None]).sum(0) / (length * p.norm()) for p in prototypes.values()])


def pixel_contrast(features, label, prototypes, common, temperature):
    """Mean of -log softmax over the pixels whose class both images have."""
    losses, scores = [], cosines(features, prototypes) / temperature
    for number, c in enumerate(prototypes):
        if c in common:
            losses += list((scores.logsumexp(0) - scores[number])[label == c])
    return sum(losses) / len(losses) if losses else features.sum() * 0


def fda(content, style, half):
    """One image [3, H, W]: the centred square of low frequencies gets the style's amplitude."""
    out = []
    for mine, theirs in zip(content.double(), style.double(), strict=True):
        f, g = (torch.fft.fftshift(torch.fft.fft2(x)) for x in (mine, theirs))
        amplitude, row, column = f.abs(), mine.shape[0] // 2, mine.shape[1] // 2
        square = (slice(row - half, row + half + 1), slice(column - half, column + half + 1))
        amplitude[square] = g.abs()[square]
        out.append(torch.fft.ifft2(torch.fft.ifftshift(torch.polar(amplitude, f.angle()))).real)
    return torch.stack(out).float().clamp(0, 1)


def embedded(network, image):
    """Unit vectors of the projection, and the plain logits."""
    stages = network.encoder((image - network.mean) / network.std)
    fused = network.heads["main"].fuse(stages)
    logits = network.heads["main"].classify(fused)
    vectors = network.heads["projection"](fused)
    return vectors / vectors.norm(dim=1, keepdim=True), logits


def t2sda(student, batch, *, score, half, queries, negatives, temperature, weight, power, momentum, **rest):
    """DACS; then, class by class and image by image, L_pull; `score` [K] is moved in place."""
    dacs(student, batch, **rest)
    x_p = torch.stack([fda(x_s, x_t, half) for x_s, x_t in zip(batch["x_s"], batch["x_t"], strict=True)])
    with torch.no_grad():
        k_s, _ = embedded(rest["teacher"], batch["x_s"])
        k_t, logits = embedded(rest["teacher"], batch["x_t"])
        confidence, z = logits.softmax(1).max(1)
    q, _ = embedded(student, x_p)
    step = (batch["y_s"].shape[-2] // q.shape[-2], batch["y_s"].shape[-1] // q.shape[-1])
    y = batch["y_s"][:, step[0] // 2 :: step[0], step[1] // 2 :: step[1]]
    sure = torch.where(confidence >= rest["threshold"], z, 255).to(torch.uint8)
    own, other = group_by_class(y, 19), group_by_class(sure, 19)
    position, *_ = draw_equal_negatives(own, other, negatives)
    drawn = draw_of_class(own, queries)
    w = ((1 - score) / (1 - score).max()) ** power
    total, present = 0.0, [c for c in range(19) if (y == c).any()]
    for c in present:
        pixels = torch.cat([k_s[b][:, y[b] == c] for b in range(len(y))], dim=1)
        prototype = pixels.mean(1) / pixels.mean(1).norm()
        images = []
        for b in range(len(y)):
            if (y[b] == c).any():
                keys = torch.cat([k_s[b].flatten(1), k_t[b].flatten(1)], dim=1)[:, position[b, c]]
                query = q[b].flatten(1)[:, drawn[b, c]]
                terms = [
                    torch.cat([(v @ prototype)[None], v @ keys]).div(temperature).logsumexp(0)
                    - (v @ prototype) / temperature
                    for v in query.T
                ]
                images.append(sum(terms) / len(terms))
        total = total + w[c] * sum(images) / len(images)
    (weight * total / len(present)).backward()
    for c in range(19):
        if (z == c).any():
            score[c] = momentum * score[c] + (1 - momentum) * confidence[z == c].mean()
