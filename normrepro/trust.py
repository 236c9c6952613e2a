"""What may be built of a config that somebody else wrote: that of a record or of a checkpoint.

A `_target_` may call anything that Python can import, and `torch.os.makedirs` is inside torch. Such
a config may therefore name only what this project's own configs name, and the classes of layers,
data sets, optimizers and schedules of a few packages. It can fetch nothing either: weights come
from the checkpoint. What a person types on the command line is that person's own, and not judged.
"""

import re
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

from normrepro.config import CONFIG_DIR, ConfigError

PLACES = (
    *("normrepro", "torch.nn", "torch.optim", "timm"),
    *("torchvision.models", "torchvision.ops", "torchvision.datasets"),
)
# Arguments that fetch or open files. They are of no use here, and are set to "no".
FETCHING = {
    **{"pretrained": False, "download": False, "weights": None, "weights_backbone": None},
    **{"checkpoint_path": None, "pretrained_cfg": None, "pretrained_cfg_overlay": None},
}
NAME = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+")  # no part is private
RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def vetted(config: Any, more: Sequence[str] = (), path: str = "") -> Any:
    """Return a copy of a config that can be built without harm.

    Args:
        config: Plain data: dicts, lists, strings, numbers.
        more: Packages to trust beside those above, such as that of one's own normalizers.
        path: Where in the config this is, for messages.

    Raises:
        ConfigError: It names something that it may not call, or has an interpolation.
    """
    if isinstance(config, dict):
        if "_target_" in config:
            check_target(config, more, path)
        items = {
            str(k): vetted(v, more, f"{path}.{k}" if path else str(k)) for k, v in config.items()
        }
        return {k: FETCHING[k] if k in FETCHING and v is not None else v for k, v in items.items()}
    if isinstance(config, list | tuple):
        return [vetted(item, more, f"{path}[{i}]") for i, item in enumerate(config)]
    if isinstance(config, str) and "${" in config:
        raise ConfigError(f"{path}={config!r} comes from a file and has an interpolation: refused")
    return config


def check_target(node: dict[Any, Any], more: Sequence[str], path: str) -> None:
    """Refuse a `_target_` that is neither known nor one of the classes of `kinds`."""
    target = node["_target_"]
    own = any(str(target).startswith(f"{package}.") for package in more)
    if not isinstance(target, str) or not (own or target in known() or allowed(target)):
        raise ConfigError(
            f"{path}._target_={target!r} comes from a file and is no layer, data set, optimizer or "
            "schedule that it may name: refused. To trust a package of your own: "
            "normrepro.load(..., trust=['package']) or run.trust=[package]"
        )
    if target == "timm.create_model":
        check_timm(str(node.get("model_name", "")), path)


@cache
def known() -> frozenset[str]:
    """Return every `_target_` of the project's own configs."""
    texts = (path.read_text(encoding="utf-8") for path in CONFIG_DIR.rglob("*.yaml"))
    return frozenset(name for text in texts for name in re.findall(r"_target_:\s*([\w.]+)", text))


def allowed(target: str) -> bool:
    """Tell whether a name is a public class of one of the kinds, in one of the places."""
    inside = any(target.startswith(f"{place}.") for place in PLACES)
    if not inside or not NAME.fullmatch(target):
        return False
    home, _, name = target.rpartition(".")
    try:
        found = getattr(import_module(home), name)
    except (ImportError, AttributeError):
        return False
    return isinstance(found, type) and issubclass(found, kinds())


def kinds() -> tuple[type, ...]:
    """Return the classes whose descendants may be built."""
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler
    from torch.utils.data import Dataset

    return nn.Module, Optimizer, LRScheduler, Dataset


def check_timm(name: str, path: str) -> None:
    """Refuse names that timm would look up on a hub or in a folder, where code and pickles lie."""
    import timm

    if not timm.is_model(name.partition(".")[0]) or not re.fullmatch(r"[\w.]+", name):
        raise ConfigError(
            f"{path}.model_name={name!r} comes from a file and is no architecture of timm's own: "
            "refused"
        )


def is_run_name(name: Any) -> bool:
    """Tell whether a run's name is one that a folder may bear: no way out of `runs/`."""
    return isinstance(name, str) and RUN.fullmatch(name) is not None
