"""The loss of labels, classes and numbers, what balancing does to it, and images with several parts."""

import math

import pytest
import torch
from torch import nn

from zoo.checkpoint import LoadReport
from zoo.embedding import Cases
from zoo.entry import Parts
from zoo.registry import get_entry
from zoo.tasks.data import Images, TrainingImages, WholeImages, kept_in
from zoo.tasks.method import Learner, importance_of, prior_of

CONTRACT = get_entry("caid-resnet50").preprocessing
NAN = math.nan


class Linear(nn.Module):
    """An encoder without a body: the mean over space of each channel, and a head called as CAiD's is."""

    def __init__(self, outputs: int, channels: int = 3, fresh: tuple[str, ...] = ("fc.weight", "fc.bias")) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, outputs)
        self.zoo_report = LoadReport("caid-resnet50", fresh=dict.fromkeys(fresh, "made"))

    def forward(self, x):
        return self.fc(x.flatten(2).mean(2))

    def forward_features(self, x):
        return x

    def get_classifier(self):
        return self.fc


def learner(kind, labels, *, outputs, balanced=False):
    torch.manual_seed(0)
    return Learner(Linear(outputs), kind, torch.tensor(labels), balanced=balanced, frozen=False)


@pytest.mark.parametrize(
    ("kind", "labels", "outputs"),
    [
        ("labels", [[0.0, NAN], [1, 1], [1, 0], [NAN, 1], [0, 0], [0, NAN]], 2),
        ("classes", [[0.0], [2], [1], [1], [0], [2]], 3),
        ("numbers", [[0.1, NAN], [1, 1], [-1, 0], [NAN, 1], [0, 0], [0.3, NAN]], 2),
    ],
)
def test_two_processes_learn_as_one(kind, labels, outputs):
    """A mean over the labels that are known would be another one on each process, and their mean not that of all."""
    method, given, values = (
        learner(kind, labels, outputs=outputs, balanced=True),
        torch.tensor(labels),
        torch.rand(6, outputs),
    )
    halves = [method.loss(values[own], given[own]) for own in (slice(0, 3), slice(3, 6))]
    assert torch.stack(halves).mean() == pytest.approx(method.loss(values, given).item(), rel=1e-6)


def test_a_missing_label_teaches_nothing():
    """A gap taken for 0 would."""
    method = learner("labels", [[0.0, 1], [1, 0]], outputs=2)
    values = torch.zeros(1, 2, requires_grad=True)
    method.loss(values, torch.tensor([[1.0, NAN]])).backward()
    assert values.grad[0, 0] < 0
    assert values.grad[0, 1] == 0


def test_balancing_counts_rare_and_frequent_alike():
    """Nine healthy ones for each ill one: together they count as much as it does."""
    labels = torch.tensor([[1.0], *[[0.0]] * 9])
    assert importance_of("labels", labels, balanced=True)[:, 0].tolist() == pytest.approx([10 / 18, 5.0])
    assert importance_of("classes", labels, balanced=True).tolist() == pytest.approx([10 / 18, 5.0])
    assert importance_of("labels", labels, balanced=False)[:, 0].tolist() == [1.0, 1.0]


def test_probabilities_are_those_of_the_cohort_though_balancing_shifts_them():
    """A constant network that is trained with weights says 0.1 for a finding of one in ten, in each file of its run."""
    labels = torch.tensor([[1.0], *[[0.0]] * 9])
    for kind, outputs in (("labels", 1), ("classes", 2)):
        constant = torch.zeros(outputs, requires_grad=True)
        method = learner(kind, labels.tolist(), outputs=outputs, balanced=True)
        optimizer = torch.optim.LBFGS([constant], max_iter=50)

        def step(constant=constant, method=method, optimizer=optimizer):
            optimizer.zero_grad()
            loss = method.loss(constant.expand(10, -1), labels)
            loss.backward()
            return loss

        optimizer.step(step)
        found = constant.detach()
        probability = found.sigmoid()[0] if kind == "labels" else found.softmax(0)[1]
        assert probability.item() == pytest.approx(0.1, abs=1e-3)


def test_balancing_leaves_a_head_of_the_users_alone():
    """A fresh head begins where it was initialised, for the balanced loss; one from a file says what it said before."""
    labels = torch.tensor([[1.0], *[[0.0]] * 9])
    prior = prior_of("labels", importance_of("labels", labels, balanced=True))
    for fresh, shift in ((("fc.weight", "fc.bias"), prior), ((), 0)):
        network = Linear(1, fresh=fresh)
        before = network.fc.bias.detach().clone()
        method = Learner(network, "labels", labels, balanced=True, frozen=False)
        assert torch.equal(method.state()["fc.bias"], before - shift)


def test_a_frozen_network_keeps_its_statistics():
    """Batch statistics that move would make the features others than the published ones."""
    network = Linear(1)
    network.norm = nn.BatchNorm2d(3)
    method = Learner(network, "labels", torch.tensor([[0.0], [1.0]]), balanced=False, frozen=True).train()
    assert not method.network.norm.training


class Windows:
    """A reader: image i has i + 1 windows of the constants 1, 2, ...; the first one counts nothing."""

    def __init__(self, cells=False, colour=False):
        self.cells, self.colour = cells, colour

    def __call__(self, path):
        count = int(path.stem) + 1
        values = torch.arange(1.0, count + 1).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
        values = values * torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1) if self.colour else values
        weights = torch.arange(count, dtype=torch.float64) if count > 1 else torch.ones(1, dtype=torch.float64)
        weights = weights / weights.sum()
        if self.cells:
            weights = weights[:, None, None].expand(-1, 4, 4) / 16
        return Parts((values.contiguous(),), weights)


def images(folder, count=5, **options):
    paths = [folder / f"{i}.png" for i in range(count)]
    for path in paths:
        path.touch()
    names = [str(path) for path in paths]
    return Images(Cases(names, names, {}, None), CONTRACT, Windows(**options))


@pytest.mark.parametrize("cells", [False, True])
def test_an_image_is_the_weighted_mean_of_its_parts(tmp_path, cells):
    """In chunks of any size, with weights of parts or of cells; the value is w.x + b with the mean of the image."""
    given = images(tmp_path, cells=cells)
    method = learner("labels", [[0.0], [1.0]], outputs=1)
    item = WholeImages(given, [3])[(0, 0)]
    batch = {"inputs": [x[None] for x in item["inputs"]], "weights": item["weights"][None]}
    mean = (1 * 2 + 2 * 3 + 3 * 4) / 6
    expected = method.network.fc(torch.full((1, 3), mean)).item()
    for at_once in (1, 3, 8):
        assert method.outputs(batch, at_once).item() == pytest.approx(expected, rel=1e-5)
    assert method.network(torch.full((1, 3, 4, 4), mean)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("cells", [False, True])
def test_a_step_is_given_some_parts_that_count_one(tmp_path, kept, cells):
    """Weights that are not made to sum to 1 again would shrink the features of images with many parts."""
    given = images(tmp_path, cells=cells)
    if kept:
        given = kept_in(tmp_path, given, workers=0)
    data = TrainingImages(given, range(5), torch.zeros(5, 1), count=2, augment=None, seed=1)
    for i in range(5):
        item = data[(0, i)]
        assert item["inputs"][0].shape == (2, 3, 4, 4)
        assert item["weights"].sum().item() == pytest.approx(1.0)
        counting = item["weights"].reshape(2, -1).sum(1) > 0
        assert counting.sum() == min(2, max(1, i))
        drawn = item["inputs"][0][counting, 0, 0, 0]
        assert len(set(drawn.tolist())) == len(drawn)
    draws = [data[(data_pass, 4)]["inputs"][0][:, 0, 0, 0].tolist() for data_pass in range(6)]
    assert draws[0] == data[(0, 4)]["inputs"][0][:, 0, 0, 0].tolist(), "a draw follows from (seed, pass, index)"
    assert len(set(map(tuple, draws))) > 1


@pytest.mark.parametrize("colour", [False, True])
def test_kept_images_are_those_that_were_made(tmp_path, colour):
    """Grey films are kept as one channel; colour ones would lose two by that."""
    given = images(tmp_path, colour=colour)
    kept = kept_in(tmp_path, given, workers=0)
    for i in range(5):
        made, read = given.parts(i), kept.parts(i)
        assert torch.equal(made.inputs[0], read.inputs[0])
        assert torch.equal(made.weights, read.weights)


def test_a_changed_image_is_made_again(tmp_path):
    """A resumed run on an edited file would otherwise learn from the old one."""
    given = images(tmp_path)
    kept = kept_in(tmp_path, given, workers=0)
    before = kept._key(2)
    (tmp_path / "2.png").write_text("other")
    assert kept._key(2) != before
