"""Classification: loss, exact sums whatever the split, metrics, modes."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from normrepro.data import Digits
from normrepro.data.base import generator
from normrepro.models import small_resnet
from normrepro.tasks import Classification
from normrepro.training.optim import lr_factor, set_lr

CONFIGS = Path(__file__).parents[1] / "configs"


class Answers(nn.Module):
    """A model that returns its input as logits."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        assert not torch.is_grad_enabled() or self.training
        return x


def test_loss_smooths_the_target_over_all_classes():
    logits = torch.randn(5, 3, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 1, 0])
    log = logits.log_softmax(1)
    target = 0.9 * nn.functional.one_hot(labels, 3) + 0.1 / 3
    expected = -(target * log).sum(1).mean()
    torch.testing.assert_close(Classification(0.1).loss(Answers(), logits, labels), expected)


def test_half_precision_logits_give_a_float32_loss():
    loss = Classification().loss(Answers(), torch.randn(4, 3).bfloat16(), torch.zeros(4).long())
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("cuts", [[10], [3, 7], [1, 0, 9]])
def test_sums_do_not_depend_on_the_split_into_batches(cuts):
    logits = torch.randn(10, 3, generator=generator("logits"))
    labels = torch.randint(3, (10,), generator=generator("labels"))
    pieces = zip(logits.split(cuts), labels.split(cuts), strict=True)
    task = Classification(0.1)
    sums = task.evaluate(Answers(), pieces)
    assert {k: (v.dtype, v.shape) for k, v in sums.items()} == dict.fromkeys(
        ("count", "loss", "wrong", "count5", "wrong5"), (torch.float64, ())
    )
    metrics = task.metrics(sums)
    wrong = (logits.argmax(1) != labels).sum().item()
    assert metrics["error"] == 10 * wrong
    loss = nn.functional.cross_entropy(logits.double(), labels, label_smoothing=0.1).item()
    assert metrics["loss"] == pytest.approx(loss, rel=1e-12)


def test_a_rank_without_images_adds_zeros():
    sums = Classification().evaluate(Answers(), [])
    assert [float(value) for value in sums.values()] == [0] * 5


def test_nan_logits_are_wrong():
    logits = torch.tensor([[float("nan"), 0, 0], [1, 0, 0]])
    sums = Classification().evaluate(Answers(), [(logits, torch.tensor([0, 0]))])
    assert (float(sums["count"]), float(sums["wrong"])) == (2, 1)


def test_top5_error_is_the_papers_recall_at_5():
    logits = torch.randn(40, 7, generator=generator("logits"))
    logits[0], logits[1, 3] = 0, float("nan")  # ties: the label's number decides
    labels = torch.randint(7, (40,), generator=generator("labels"))
    labels[0] = 5
    best = [sorted(range(7), key=lambda c: (-row[c], c))[:5] for row in logits.tolist()]
    wrong = [int(y) not in five for y, five in zip(labels, best, strict=True)]
    wrong[1] = True
    task = Classification()
    sums = task.evaluate(Answers(), zip(logits.split([3, 37]), labels.split([3, 37]), strict=True))
    metrics = task.metrics(sums)
    assert metrics["top5_error"] == 100 * sum(wrong) / 40
    assert 0 < metrics["top5_error"] < metrics["error"]


def test_four_classes_have_no_top5_error():
    sums = Classification().evaluate(Answers(), [(torch.randn(2, 4), torch.tensor([0, 1]))])
    assert "top5_error" not in Classification().metrics(sums)


def test_evaluation_gives_every_module_its_mode_back():
    model = Answers().train()
    model.norm.eval()  # frozen by its owner
    Classification().evaluate(model, [(torch.randn(2, 3), torch.tensor([0, 1]))])
    assert (model.training, model.norm.training) == (True, False)


def test_the_configured_task_learns_the_digits():
    cfg = OmegaConf.create({"task": OmegaConf.load(CONFIGS / "task" / "classification.yaml")})
    cfg.recipe = {"label_smoothing": 0.1}
    task = instantiate(cfg.task.build)
    assert (cfg.task.name, task.label_smoothing) == ("classification", 0.1)
    data = OmegaConf.create({"data": OmegaConf.load(CONFIGS / "data" / "digits.yaml")}).data
    source = instantiate(
        data.source, seed=0, total=64, rank=0, world=1, device="cpu", augment="light"
    )
    assert isinstance(source, Digits)
    assert (source.classes, source.train_size, source.val_size) == tuple(data.expect.values())
    torch.manual_seed(0)
    model = small_resnet(depth=8, width=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step, total = 0, 4 * source.steps_per_epoch
    for epoch in range(4):
        for x, y in source.train_batches(epoch):
            set_lr(optimizer, lr_factor(step, total, {"name": "cosine"}))
            optimizer.zero_grad()
            task.loss(model, x, y).backward()
            optimizer.step()
            step += 1
    metrics = task.metrics(task.evaluate(model, source.eval_batches()))
    assert step == total
    assert metrics["error"] < 10
