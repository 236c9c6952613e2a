"""What `train.py` says and checks before Hydra starts: the help page and the command line."""

from __future__ import annotations

import re
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser  # the parser of hydra.main itself
from hydra.core.override_parser.types import Glob, Override

from normrepro.checks import ConfigError, check
from normrepro.config import CONFIG_DIR, compose, rank, world_size
from normrepro.hints import groups, parse

INTRODUCTION = """\
Train one network with one normalizer, or a whole sweep of them.

  python train.py [key=value ...]        one run
  python train.py -m [key=a,b,c ...]     one run for every combination of the values

A run lives in runs/<name>, and its name is made from its config. Starting a finished run again
says so and trains nothing; starting a killed run again resumes it from its last checkpoint.

Examples
  python train.py norm=mabn data=digits
  python train.py norm=mabn data=imagenet data.root=/data/imagenet
  python train.py -m norm=bn,brn,mabn,gn batch.norm=2,4,8 seed=0,1,2
  torchrun --standalone --nproc_per_node=2 train.py norm=mabn data=digits
  python train.py norm=gn model=timm model.name=resnet26 data=folder data.root=my/images

Batches
  batch.total     images per optimizer step
  batch.devices   devices of the paper's protocol, each with its own running state; one process
                  plays them all, 8 processes play batch.devices=8 one each, with the same result
  batch.norm      images per set of statistics: a device's images are split into groups of so many
"""

CLOSING = """\
Other keys
  seed=0   precision=float32|float64|bfloat16|float16   eval.state=first|mean   recipe.epochs=...
  run.device=auto|cpu|cuda   run.threads=1   run.wandb=auto|online|offline|disabled   run.root=runs
  run.eval=<run or checkpoint>   evaluate it, train nothing
  python train.py --cfg job norm=mabn    prints every key of a run and its value
  python train.py --hydra-help           Hydra's own flags
"""


def help_page() -> str:
    """Return the page that `python train.py --help` prints."""
    return "\n".join([INTRODUCTION, "Groups (* is the default)", *_group_lines(), "", CLOSING])


def _group_lines() -> Iterator[str]:
    defaults = _defaults()
    for group, choices in groups().items():
        for choice in choices:
            mark = "*" if choice == defaults.get(group) else " "
            about = describe(CONFIG_DIR / group / f"{choice}.yaml")
            yield f"  {group + '=' + choice:<23}{mark} {about}".rstrip()


def _defaults() -> dict[str, str]:
    """Read the defaults list: group to choice."""
    lines = (CONFIG_DIR / "config.yaml").read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("#")[0].strip(" -").split(": ") for line in lines if "  - " in line)
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def describe(path: Path) -> str:
    """Return the first sentence of a YAML file's first comment.

    Args:
        path: The file of one choice of a group.
    """
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "@package" not in line:
            sentence = re.split(r"\.(?: (?=[A-Z])|$)", line.lstrip("# ").strip())[0]
            return textwrap.shorten(sentence, width=72, placeholder=" ...")
    return ""


def check_command_line(arguments: Sequence[str]) -> bool:
    """Check a command line before Hydra reads it.

    Of a sweep, every value is tried once (Hydra itself composes every combination); whether its
    numbers fit together is each job's own matter, so that one that does not stops no other.

    Args:
        arguments: `sys.argv` without the program.

    Returns:
        Whether it is a sweep.

    Raises:
        ConfigError: On the first override that is wrong, with a hint.
    """
    args = get_args_parser().parse_args(list(arguments))
    if args.config_name or args.config_path or args.config_dir or args.experimental_rerun:
        return bool(args.multirun)  # another config tree: not ours to judge
    if args.multirun:
        for overrides in one_at_a_time(args.overrides):
            compose(overrides)
        return True
    cfg = compose(args.overrides)
    if not (args.cfg or args.info or args.hydra_help or args.shell_completion):
        check(cfg, world_size())
        require_room(Path(cfg.run.root))
    return False


def require_room(root: Path) -> None:
    """Refuse a folder for runs in which nothing can be written, before Hydra makes one there.

    Raises:
        ConfigError: The system's reason.
    """
    if rank() != 0:  # the first process alone writes
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=root, prefix=".room-") as probe:
            probe.write(bytes(4096))
            probe.flush()
    except OSError as error:
        raise ConfigError(
            f"run.root={root} cannot be written ({error.strerror}): make room there, or set "
            "run.root to another folder"
        ) from error


def one_at_a_time(overrides: Sequence[str]) -> Iterator[list[str]]:
    """Yield override lists in which each value of a sweep stands at least once.

    Args:
        overrides: Overrides in which a value may be a sweep.
    """
    columns = [_values(override) for override in parse(overrides)]
    first = [column[0] for column in columns]
    yield first
    for i, column in enumerate(columns):
        for value in column[1:]:
            yield [*first[:i], value, *first[i + 1 :]]


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [override.input_line]
    key = override.get_key_element()
    value = override.value()
    if isinstance(value, Glob):
        matches = value.filter(list(groups().get(override.key_or_group, ())))
        return [f"{key}={match}" for match in matches] or [f"{key}={','.join(value.include)}"]
    return [f"{key}={text}" for text in override.sweep_string_iterator()]
