"""Every network that segments learns to: a planted ball, in some steps, with all of its parameters."""

import pytest
import torch
from balls import draw
from small_networks import ALIKE, SMALL, build_small

from zoo.entry import Windows
from zoo.registry import entries
from zoo.tasks.segmenter import Segmenter

SEGMENTING = [name for name, entry in entries().items() if entry.segments]
STEPS = {"anatomix-unet": 10, "ct-fm-segresnet": 12, "genesis-unet3d": 10, "monai-ssl-unetr": 8, "voco-swinunetr-b": 4}
SIDES = {
    "anatomix-unet": (32, 32, 32),
    "ct-fm-segresnet": (32, 32, 16),
    "monai-ssl-unetr": (32, 32, 32),
    "glcl-unet": (64, 64),
    "caid-resnet50-unet": (64, 64),
}
RATES = {"caid-resnet50-unet": 1e-3}


def batch_of(name, seeds, shape):
    drawn = [draw(shape, seed) for seed in seeds]
    channels = SMALL[ALIKE.get(name, name)].shape[0]
    image = torch.stack([torch.tensor(image, dtype=torch.float32).expand(channels, *shape) for image, _ in drawn])
    label = torch.stack([torch.tensor(inside, dtype=torch.uint8)[None] for _, inside in drawn])
    return {"image": image[None], "label": label[None]}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SEGMENTING if name not in ALIKE])
def test_a_network_learns_to_segment(name):
    """The loss falls, a ball that it has not seen is found, and no parameter is left out, as plain DDP needs it."""
    shape = SIDES.get(name, SMALL[name].shape[1:])
    network = build_small(name, num_classes=2)
    method = Segmenter(network, 2, Windows(shape)).train()
    optimizer = torch.optim.AdamW(method.parameters(), RATES.get(name, 3e-3))
    losses = []
    for step in range(STEPS.get(name, 20)):
        loss = method(batch_of(name, range(2 * step, 2 * step + 2), shape))["loss"]
        loss.backward()
        if step == 0:
            assert [key for key, p in method.named_parameters() if p.grad is None] == []
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    unseen = batch_of(name, [1000], shape)
    truth = unseen["label"][0, 0, 0].bool()
    with torch.no_grad():  # of a batch, as in training: these steps are few for running averages
        found = method.network.train()(unseen["image"][0].repeat(2, *[1] * (1 + len(shape))))
    found = (found[0] if isinstance(found, list) else found)[0].argmax(0).bool()
    dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    assert dice > 2 * 2 * truth.float().mean() / (1 + truth.float().mean())  # twice that of calling all of it the ball
