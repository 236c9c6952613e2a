"""Property-based tests: whatever is asked of the layers and the command line, only own errors.

An own error is a ValueError or TypeError (ConfigError is one) that the project itself raises, and
whose message names the argument, or the override, that is wrong. `make fuzz CASES=10000` tries
many.
"""

import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import HealthCheck, given, settings
from omegaconf import OmegaConf

from normrepro import config, norms
from normrepro.checks import ConfigError, check
from normrepro.hints import groups
from tests.norms.registry import CHOICES, LAYERS

CASES = int(os.environ.get("CASES", "500"))  # four in five of layers, the rest of overrides


def cases(count: int) -> settings:
    """So many cases, the same in every run unless they were asked for."""
    fixed = "CASES" not in os.environ
    silent = list(HealthCheck)
    return settings(
        max_examples=count, deadline=None, derandomize=fixed, suppress_health_check=silent
    )


PACKAGE = str(Path(norms.__file__).parents[1])
BATCH = "expected|shape|dtype|images|values|float"  # what is said of a batch that does not fit


def own(error: BaseException, names: str) -> bool:
    """Tell whether the project raised the error itself and names what is wrong."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = bool(frames) and frames[-1].filename.startswith(PACKAGE)
    wrong = isinstance(error, ValueError | TypeError)
    return ours and wrong and re.search(names, str(error)) is not None


# -- layers ----------------------------------------------------------------------------------------

NUMBERS = st.sampled_from([-1, 0, 1, 2, 3, 4, 6, 8, 64])
DTYPES = st.sampled_from(
    [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.complex64]
)


@st.composite
def batches(draw: st.DrawFn, channels: int) -> torch.Tensor:
    """A batch of any rank, mostly with the layer's channels, of any dtype, memory and content."""
    shape = [draw(st.integers(0, 9)), draw(st.sampled_from([channels, channels, channels, 5]))]
    shape += draw(st.lists(st.integers(0, 4), max_size=3))
    shape = shape[: draw(st.sampled_from([1, 6, 6, 6, 6, 6]))]
    values = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 9))))
    values = values * draw(st.sampled_from([1.0, 0.0, 1e4, 1e-8]))
    x = values.to(draw(DTYPES))
    if x.dim() == 4 and draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    return x.flip(0) if draw(st.booleans()) and x.is_floating_point() else x


@cases(CASES * 4 // 5)
@given(data=st.data())
def test_a_layer_answers_or_says_which_argument_is_wrong(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(LAYERS)))
    channels, group = data.draw(NUMBERS), data.draw(st.one_of(st.none(), NUMBERS))
    options = {"group": group, "replicas": data.draw(st.sampled_from([1, 1, 1, 2, 3, 0, -2]))}
    options["eps"] = data.draw(st.sampled_from([1e-5, 1e-5, 1e-5, 0.0, -1.0, float("nan")]))
    options["affine"] = data.draw(st.booleans())
    own_options = [k for k in LAYERS[name] if not k.startswith("_")]
    if own_options and data.draw(st.booleans()):
        odd = st.sampled_from([-1, 0, 0.5, 1, 2, 100, None, float("nan")])
        options[data.draw(st.sampled_from(own_options))] = data.draw(odd)
    x = data.draw(batches(max(channels, 1)))
    train, steps = data.draw(st.booleans()), data.draw(st.integers(1, 3))
    try:
        layer = instantiate(LAYERS[name])(channels, **options).train(train)
        layer.run_length = 10
        if x.dtype == torch.float64:
            layer.double()
        for _ in range(steps):
            v = x.clone().requires_grad_(x.is_floating_point())
            with norms.step(layer):
                y = layer(v)
                if y.requires_grad:
                    y.float().square().sum().backward()
            assert y.shape == x.shape
            assert y.dtype == x.dtype
    except Exception as error:
        cause = error.__cause__ if "InstantiationException" in type(error).__name__ else error
        assert own(cause, "|".join(["channels", BATCH, *options])), (
            f"{name}({channels}, {options}) on {x.shape}: {cause!r}"
        )


# -- the command line ------------------------------------------------------------------------------


def leaves(node: object, path: str) -> Iterator[str]:
    """The dotted keys of a config, those of its sections too."""
    if path:
        yield path
    for key, value in node.items() if isinstance(node, dict) else ():
        yield from leaves(value, f"{path}.{key}" if path else str(key))


KEYS = sorted(leaves(OmegaConf.to_container(config.compose(())), ""))
GROUPS = groups()
NUMBERLIKE = ["-1", "0", "1", "2", "7", "64", "0.5", "1e9", "nan", "inf", "null", "true"]
OTHER = ["''", "[]", "[1,2]", "{}", "{a:1}", "abc", "../..", "${seed}", "$(id)", "a b"]
VALUES = st.sampled_from(NUMBERLIKE + OTHER) | st.text(max_size=6)
CHOSEN = st.sampled_from([f"{group}={choice}" for group in GROUPS for choice in GROUPS[group]])
KEY, SIGN = st.sampled_from(KEYS), st.sampled_from(["", "+", "++", "~"])
VALUED = st.builds(lambda key, value: f"{key}={value}", KEY, VALUES)
SIGNED = st.builds(lambda sign, key, value: f"{sign}{key}={value}", SIGN, KEY, VALUES)
MISSPELT = st.builds(lambda i, text: text[:i] + text[i + 1 :], st.integers(0, 9), VALUED | CHOSEN)
ASKED = st.lists(CHOSEN | VALUED | SIGNED | MISSPELT | st.text(max_size=12), min_size=1, max_size=3)


@cases(CASES // 5)
@given(asked=ASKED, world=st.sampled_from([1, 1, 2, 3]))
def test_overrides_compose_or_the_error_names_one(asked: list[str], world: int) -> None:
    try:
        cfg = config.compose(asked)
        check(cfg, world)
        name = config.run_name(cfg)
        assert re.fullmatch(r"[A-Za-z0-9_.-]+", name)
        assert config.run_dir(cfg).name == name
    except ConfigError as error:
        said, parts = str(error), [part for text in asked for part in (text, config_key(text))]
        named = any(part in said for part in parts if part) or bool(re.search(r"\w+=", said))
        assert named, (asked, said)


def config_key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~").strip()


def test_the_registry_is_what_is_tried() -> None:
    assert set(CHOICES) == set(GROUPS["norm"])
    assert len(LAYERS) > 10
    with pytest.raises(RuntimeError) as raised:
        torch.zeros(2).view(3)
    assert not own(raised.value, "shape")
