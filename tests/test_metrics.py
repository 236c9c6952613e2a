"""The names of metrics in tables: what each reads from a record."""

import pytest

from normrepro import metrics
from normrepro.checks import ConfigError

RECORD = {
    "status": "finished",
    "metrics": {
        **{"error": 10.0, "best_error": 8.0, "top5_error": 2.0, "best_top5_error": 1.0},
        **{"error_ema": 12.0, "top5_error_rule": 3.0, "error_disturbed_0.5": 40.0, "loss": 0.5},
    },
    "history": [
        {"epoch": 1, "error": 50.0, "train_error": 45.0, "esm_mean": [0.5, None, 1.5]},
        {"epoch": 2, "error": None, "train_error": 25.0, "esm_mean": [1.0, 3.0, 2.0]},
    ],
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("error", 10.0),
        ("accuracy", 90.0),
        ("best_accuracy", 92.0),
        ("accuracy_ema", 88.0),
        ("top5_accuracy", 98.0),
        ("best_top5_accuracy", 99.0),
        ("top5_accuracy_rule", 97.0),
        ("accuracy_disturbed_0.5", 60.0),
        ("loss", 0.5),
        ("error@1", 50.0),
        ("accuracy@1", 50.0),
        ("train_accuracy@last", 75.0),
        ("error@2", None),
        ("error@3", None),
        ("esm_mean@2[1]", 3.0),
        ("esm_mean@1[1]", None),
        ("esm_mean@2[3]", None),
        ("esm_mean@2.max", 3.0),
        ("esm_mean@1.mean", 1.0),
        ("esm_mean@last.min", 1.0),
        ("esm_mean@2", None),
        ("error@1.max", None),
        ("nothing", None),
    ],
)
def test_a_name_reads_its_number(name, expected):
    assert metrics.value(RECORD, name) == expected


def test_a_diverged_run_has_its_history_only():
    lost = RECORD | {"status": "diverged"}
    assert metrics.value(lost, "error") is None
    assert metrics.value(lost, "error@1") == 50.0


@pytest.mark.parametrize("name", ["", "error @ 3", "error@", "error@x", "error@1[-1]", "e@1.sum"])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(ConfigError, match="is no metric"):
        metrics.parse(name)


def test_curves_and_lists_of_layers():
    assert metrics.curve(RECORD, "best_accuracy") == [(1, 50.0)]
    assert metrics.curve(RECORD, "train_error@2") == [(1, 45.0), (2, 25.0)]
    assert metrics.per_layer(RECORD, "esm_mean", 1) == [0.5, None, 1.5]
    assert metrics.per_layer(RECORD, "esm_mean", "last") == [1.0, 3.0, 2.0]
    assert metrics.per_layer(RECORD, "esm_mean", 7) == []


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("best_top5_accuracy", "top-5 accuracy of the best epoch"),
        ("accuracy_ema", "accuracy ema of the last epoch"),
        ("esm_mean@50[0]", "esm mean, layer 0, at epoch 50"),
        ("esm_mean@last.max", "esm mean, max of the layers, at the last epoch"),
    ],
)
def test_titles_are_for_a_reader(name, title):
    assert metrics.title(name) == title
