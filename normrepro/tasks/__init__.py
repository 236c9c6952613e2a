"""Tasks: the loss of a batch, and the metrics of a model on a stream of batches."""

from normrepro.tasks.classification import Classification

__all__ = ["Classification"]
