"""Time the normalizers against torch.nn.BatchNorm2d and write results/bench_<hardware>.md.

A cell is the median of ratios whose two times were taken one after the other, in one process.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout works without being installed

import epochs  # noqa: E402
import inputs  # noqa: E402
import timing  # noqa: E402
import torch  # noqa: E402
import torchvision  # noqa: E402
from timing import Run  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from normrepro import config, convert, hints, models, norms, record  # noqa: E402
from normrepro.norms import kernels  # noqa: E402

WANTED = ("bn", "brn", "mabn", "cbn", "evalnorm", "gn")
OPTIONS = {"cbn": {"window": 4, "burn_in": 0}}  # k of the claim, and its window open from the start
PATHS = (False, True)  # without and with the compiled kernels
GROUP = 2  # the normalization batch
LAYERS = ((32, 64, 56, 56), (32, 256, 14, 14), (128, 16, 32, 32))
STEPS = {
    "ResNet-18, 8x3x224x224": (torchvision.models.resnet18, (8, 3, 224, 224)),
    "ResNet-20, 128x3x32x32": (
        lambda: models.small_resnet(depth=20, width=16, in_channels=3, num_classes=10),
        (128, 3, 32, 32),
    ),
}
FORMS = {torch.contiguous_format: "NCHW", torch.channels_last: "channels_last"}
TITLES = {
    "steps": "One training step (forward, loss, backward, SGD, state of the norms)",
    "layers": "The layer alone (forward, backward, state)",
    "epoch": epochs.TITLE,
    "data": inputs.TITLE,
}


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__)
    result.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    result.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    result.add_argument("--pairs", type=int, default=30, help="pairs of times per cell")
    result.add_argument("--norms", nargs="+", default=WANTED)
    result.add_argument("--parts", nargs="+", default=("steps", "layers", "epoch", "data"))
    result.add_argument("--photos", type=Path, help="JPEGs to decode; default: scikit-learn's")
    result.add_argument("--results", type=Path, default=ROOT / "results")
    result.add_argument("--quick", action="store_true", help="5 pairs, printed and not written")
    return result


def main() -> None:
    args = parser().parse_args()
    torch.set_num_threads(args.threads)
    args.pairs = 5 if args.quick else args.pairs
    text = heading(args)
    for part in args.parts:
        others = {"epoch": epochs.table, "data": beside_step}
        lines = others.get(part, partial(table, part))(args)
        text += f"\n## {TITLES[part]}\n\n" + "\n".join(lines) + "\n"
    print(text)
    if not args.quick:
        slug = re.sub(r"[^a-z0-9]+", "_", hardware(args).lower()).strip("_")
        args.results.mkdir(exist_ok=True)
        (args.results / f"bench_{slug}.md").write_text(text)


# -- what is measured ------------------------------------------------------------------------------


def layer(name: str | None, shape: tuple[int, ...], form: torch.memory_format, device: str) -> Run:
    """Return forward and backward of one layer; None stands for torch's batch norm."""
    model = replaced(nn.Sequential(nn.BatchNorm2d(shape[1])), name, None).to(device)
    x, gy = (torch.randn(shape, device=device).to(memory_format=form) for _ in range(2))
    x.requires_grad_()

    def run() -> None:
        with norms.step(model):
            model(x).backward(gy)
        model.zero_grad()
        x.grad = None

    return run


def training_step(name: str | None, net: str, form: torch.memory_format, device: str) -> Run:
    """Return one optimizer step: forward, loss, backward, SGD, state of the norms."""
    build, shape = STEPS[net]
    torch.manual_seed(0)
    x, y = torch.randn(shape), torch.randint(10, shape[:1])
    model = replaced(build(), name, x).to(device, memory_format=form)
    x, y = x.to(device, memory_format=form), y.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)

    def run() -> None:
        with norms.step(model) if name else nullcontext():
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        optimizer.zero_grad()

    return run


def beside_step(args: argparse.Namespace) -> Iterator[str]:
    """Measure the data path beside a training step with torch's batch norm."""
    return inputs.table(args, lambda form: training_step(None, tuple(STEPS)[1], form, args.device))


def replaced(model: nn.Module, name: str | None, example: Tensor | None) -> nn.Module:
    """Put a norm of configs/norm into a model."""
    if name is None:
        return model
    choice = hints.load_choice("norm", name)
    choice.layer.update(OPTIONS.get(name, {}))
    if example is None:
        example = torch.randn(GROUP, model[0].num_features, 4, 4)
    model = convert(model, choice, group=GROUP, example=example)
    for module in model.modules():
        if hasattr(module, "run_length"):
            module.run_length = 1000
    return model


# -- the report ------------------------------------------------------------------------------------


def table(part: str, args: argparse.Namespace) -> Iterator[str]:
    """Measure one table, row by row."""
    build, cases = (layer, LAYERS) if part == "layers" else (training_step, tuple(STEPS))
    columns = [(case, form) for case in cases for form in FORMS]
    yield "| |" + "".join(f" {case} {FORMS[form]} |" for case, form in columns)
    yield "|---" * (len(columns) + 1) + "|"
    for name in args.norms:
        if (config.CONFIG_DIR / "norm" / f"{name}.yaml").exists():
            cells = (cell(build, name, *column, args) for column in columns)
            yield f"| {name} | {' | '.join(cells)} |"


def cell(
    build: Callable[..., Run],
    name: str,
    case: str | tuple[int, ...],
    form: torch.memory_format,
    args: argparse.Namespace,
) -> str:
    """Compare a layer with torch's batch norm: time of each path, memory."""
    runs = [build(None, case, form, args.device)]
    for compiled in PATHS[: 2 if compiles(args.device) else 1]:
        runs.append(partial(with_kernels, compiled, build(name, case, form, args.device)))
    times = timing.compare(runs, args.pairs, args.device)
    bn, *peaks = (timing.peak(run, args.device) for run in runs)
    result = " / ".join(f"{ratio:.2f}" for ratio in times)
    result += f" ({' / '.join(f'{mb - bn:+.0f}' for mb in peaks)} MB)"
    print(f"{name}, {case}, {FORMS[form]}: {result}", file=sys.stderr, flush=True)
    return result


def compiles(device: str) -> bool:
    """Tell whether there are compiled kernels to compare."""
    kernels.enable(True)
    return kernels.usable(torch.zeros(1, device=device))


def with_kernels(on: bool, run: Run) -> None:
    kernels.enable(on)
    run()


def hardware(args: argparse.Namespace) -> str:
    found = record.environment()
    return found["gpu"] if args.device != "cpu" else f"{found['cpu']}, {args.threads} threads"


def heading(args: argparse.Namespace) -> str:
    found = record.environment()
    versions = ", ".join(f"{k} {found[k]}" for k in ("python", "torch", "torchvision"))
    paths = "eager / compiled" if compiles(args.device) else "eager"
    return f"""# Speed and memory beside torch.nn.BatchNorm2d: {hardware(args)}

{versions}, {found["platform"]}. float32, normalization batch {GROUP} (CBN: k = 4), MABN with weight
centring. Each cell: {paths}, time as the median of {args.pairs} ratios to torch.nn.BatchNorm2d,
measured in turns in one process; in brackets peak memory above that of torch.nn.BatchNorm2d.
"""


if __name__ == "__main__":
    main()
