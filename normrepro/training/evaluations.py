"""Further evaluations of a trained model: the same weights under other rules or conditions.

Each is a generator of (model, batches): it puts the model into a condition, yields the condition's
name for the engine to evaluate, and takes it back. A name that comes several times is averaged.
`task.evaluations` and `norm.evaluations` list them; the record has `error_<name>` and so on. They
leave weights, state and the training's bits as they were, and depend on nothing but a checkpoint:
a run that is killed among them ends with the same bits.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from torch import Tensor, nn

from normrepro.data.base import Batches
from normrepro.norms import EvalNorm, evaluation_rule, fit_evalnorm
from normrepro.norms import disturbed as noisy

Further = Callable[[nn.Module, Iterator], Iterator[str]]
Sums = Mapping[str, Tensor]


def judge(
    evaluations: Iterable[Further],
    model: nn.Module,
    batches: Callable[[], Batches],
    evaluate: Callable[[], Sums],
) -> dict[str, dict[str, Tensor]]:
    """Evaluate a model under each condition of each evaluation.

    Args:
        evaluations: What to evaluate besides.
        model: The trained model; each evaluation leaves it as it was.
        batches: Starts the training batches that come after the last one trained on, endlessly.
        evaluate: Evaluates the model as it is: sums over the validation set.

    Returns:
        Name -> sums, added up where a name came several times.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for further in evaluations:
        for name in further(model, batches()):
            sums, known = evaluate(), found.get(name, {})
            found[name] = {k: v + known[k] if known else v for k, v in sums.items()}
    return found


def rules(model: nn.Module, batches: Batches, rules: Mapping[str, str]) -> Iterator[str]:
    """Evaluate EvalNorm by hand-picked alpha and beta (EvalNorm, Table 1 and Figure 4).

    Args:
        model: A model with EvalNorm layers.
        batches: Not needed.
        rules: Name -> rule of `normrepro.norms.evalnorm.RULES`.
    """
    for name, rule in rules.items():
        with evaluation_rule(model, rule):
            yield name


def offline(
    model: nn.Module, batches: Batches, epochs: int = 4, steps: int = 25, lr: float = 0.1
) -> Iterator[str]:
    """Evaluate EvalNorm with alpha and beta estimated after training (EvalNorm, section 3.4).

    The images come as in training (order, augmentation, groups), since alpha and beta shall match
    what training saw.

    Args:
        model: A model with EvalNorm layers.
        batches: Training batches.
        epochs: Stretches of the estimation; the rate falls linearly from one to the next.
        steps: Batches of a stretch.
        lr: Rate in the first.
    """
    layers = [m for m in model.modules() if isinstance(m, EvalNorm)]
    buffers = [buffer for layer in layers for buffer in (layer.alpha, layer.beta)]
    before = [buffer.clone() for buffer in buffers]
    try:
        fit_evalnorm(model, _Stretch(batches, steps), epochs, lr)
        yield "offline"
    finally:
        for buffer, old in zip(buffers, before, strict=True):
            buffer.copy_(old)


class _Stretch:
    """The next so many batches of a stream, each time it is iterated."""

    def __init__(self, stream: Batches, steps: int) -> None:
        self.stream, self.steps = stream, steps

    def __iter__(self) -> Batches:
        return islice(self.stream, self.steps)


def disturbed(
    model: nn.Module,
    batches: Batches,
    deltas: Sequence[float],
    seeds: int = 5,
    **options: object,
) -> Iterator[str]:
    """Evaluate with noise on estimated statistics (XBNBlock, equation 5 and Figure 8).

    Args:
        model: A model with BatchNorm layers.
        batches: Not needed.
        deltas: Noise magnitudes; 0.1 gives `error_disturbed_0.1`.
        seeds: Draws of the noise that an error is the mean of; all magnitudes scale the same ones.
        options: `per`, `match` and `first` of `normrepro.norms.disturbed`.
    """
    for delta in deltas:
        for seed in range(seeds):
            with noisy(model, delta, seed, **options):
                yield f"disturbed_{delta:g}"
