"""The compiled arithmetic beside torch's own: values, bits whatever the threads, and building."""

import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from normrepro import norms
from normrepro.norms import building, core, eager, kernels
from tests.conftest import environment
from tests.norms import test_exact
from tests.norms.cases import PAIRS, Case, Layout

# Not by `usable`: where there is a compiler, a build that fails must not pass as its absence.
needs_compiler = pytest.mark.skipif(
    not (kernels._enabled and any(map(shutil.which, ("cc", "gcc", "clang")))),
    reason="no C compiler, or switched off",
)
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
# Shape, groups; the last axis of a channels-last shape is moved next to N.
SHAPES = {
    "nchw": ((8, 5, 7, 9), 4),
    "nchw-large": ((4, 16, 56, 56), 2),
    "one-group": ((6, 3, 5, 5), 1),
    "one-image": ((4, 3, 4, 6), 4),
    "rows": ((12, 7), 3),
    "length": ((6, 4, 33), 3),
    "volume": ((4, 3, 3, 5, 2), 2),
    "1x1": ((8, 6, 1, 1), 2),
}
FORMS = {4: torch.channels_last, 5: torch.channels_last_3d}


@pytest.fixture(autouse=True)
def switch() -> Iterator[None]:
    """Leave switch and threads as they were."""
    before, threads = kernels._enabled, torch.get_num_threads()
    yield
    kernels.enable(before)
    torch.set_num_threads(threads)


def batches(name: str, dtype: torch.dtype, layout: str) -> tuple[Tensor, Tensor, int]:
    """Input, gradient and number of groups; "strided" is a view that is contiguous in no way."""
    shape, rows = SHAPES[name]
    generator = torch.Generator().manual_seed(len(name))
    x, u = (torch.randn(*shape, dtype=dtype, generator=generator) for _ in range(2))
    x = 1.7 * x + 0.4
    if layout == "last":
        x = x.contiguous(memory_format=FORMS[len(shape)])
    if layout == "strided":
        x, u = (torch.stack([v, v], -1)[..., 0] for v in (x, u))
    return x, u, rows


def layouts() -> list[tuple[str, str]]:
    return [
        (name, layout)
        for name, (shape, _) in SHAPES.items()
        for layout in ("plain", "strided", *(("last",) if len(shape) in FORMS else ()))
    ]


def everything(use: object, x: Tensor, u: Tensor, rows: int, terms: str) -> list[Tensor]:
    """All functions of a module; `terms` names the optional ones that are there."""
    mean, var = use.moments(x, rows)
    inv, c = (var + 0.1).rsqrt(), x.shape[1]
    given = {
        "m": mean,
        "r": 1 + 0.2 * mean,
        "d": 0.3 * mean - 0.1,
        "w": torch.linspace(-1, 2, c, dtype=x.dtype),
        "b": torch.linspace(1, -1, c, dtype=x.dtype),
        "g": 0.05 * mean,
        "p": 0.1 * inv,
    }
    m, r, d, w, b, g, p = (given[k] if k in terms else None for k in "mrdwbgp")
    y = use.affine(x, m, inv, r, d, w, b)
    sums = use.backward_sums(u, x, m, inv, r, d, w)
    once = use.backward(u, x, m, inv, r, d, w, g, p)
    own = use.normalize(x, rows, 0.1, w, b)
    square, gx = use.mean_square(x, rows), use.combine(u, x, m, inv, r, w, g, p)
    return [mean, var, square, y, *sums, gx, *once, *own]


@needs_compiler
def test_they_can_be_built() -> None:
    """Nothing else would say so: where they cannot, torch's operations take their place."""
    assert kernels.usable(torch.ones(1, 1))
    assert kernels.usable(torch.ones(1, 1, dtype=torch.float64))


@needs_compiler
@pytest.mark.parametrize("terms", ["mrdwbgp", "mwbgp", "rwbp", "p", "mg"])
@pytest.mark.parametrize(("name", "layout"), layouts())
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_compiled_values_are_eager_ones(
    dtype: torch.dtype, name: str, layout: str, terms: str
) -> None:
    x, u, rows = batches(name, dtype, layout)
    found = everything(kernels, x, u, rows, terms)
    for got, wanted in zip(found, everything(eager, x, u, rows, terms), strict=True):
        assert got.shape == wanted.shape
        assert got.stride() == wanted.stride()
        largest = wanted.abs().max().clamp(min=1e-3)
        assert (got - wanted).abs().max() <= TOLERANCE[dtype] * largest


@needs_compiler
@pytest.mark.parametrize("layout", ["plain", "last"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_bits_depend_on_no_thread_and_no_address(dtype: torch.dtype, layout: str) -> None:
    x, u, rows = batches("nchw-large", dtype, layout)
    runs = []
    for threads, shift in ((1, 0), (1, 0), (2, 0), (3, 0), (1, 3)):
        torch.set_num_threads(threads)
        home = torch.empty(x.numel() + shift, dtype=dtype)[shift:]
        runs.append(
            everything(kernels, home.as_strided(x.shape, x.stride()).copy_(x), u, rows, "mrdwbgp")
        )
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))


@pytest.mark.parametrize("layout", ["plain", "last"])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiler)])
def test_offset_does_no_harm_in_float32(compiled: bool, layout: str) -> None:
    kernels.enable(compiled)
    x, _, rows = batches("nchw-large", torch.float32, layout)
    x = x + 1e4
    mean, var = core.moments(x, rows)
    exact = x.double().unflatten(0, (rows, -1)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(var.double(), exact.var(2, correction=0), rtol=2e-6, atol=0)
    torch.testing.assert_close(mean.double(), exact.mean(2), rtol=1e-7, atol=0)
    inv = (var + 1e-5).rsqrt()
    y = core.Normalize.apply(x, None, None, mean, inv, None, None, core.own)
    z = (exact - mean.double().unsqueeze(2)) * inv.double().unsqueeze(2)
    y = y.unflatten(0, (rows, -1)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(y.double(), z, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiler)])
def test_variance_survives_an_outlier_first(compiled: bool) -> None:
    """Sums about the first value must not lose the others' variance."""
    kernels.enable(compiled)
    x, _, _ = batches("nchw-large", torch.float32, "plain")
    x[:, :, 0, 0] = 3e4
    _, var = core.moments(x, 4)
    exact = x.double().flatten(2).var(2, correction=0)
    torch.testing.assert_close(var.double(), exact, rtol=1e-5, atol=0)


@needs_compiler
@pytest.mark.parametrize("layout", ["plain", "last"])
def test_constant_and_broken_channels(layout: str) -> None:
    x, _, rows = batches("nchw", torch.float32, layout)
    x[:, 1], x[0, 2, 0, 0], x[1, 3, 0, 0] = 0.1, torch.nan, torch.inf
    mean, var = kernels.moments(x, rows)
    assert (var[:, 1] == 0).all()
    assert (mean[:, 1] == x[0, 1, 0, 0]).all()
    assert var[0, 2:4].isnan().all()
    assert var[1:].isfinite().all()


@pytest.mark.parametrize(("case", "layout"), PAIRS[::3])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiler)])
def test_layers_are_exact_on_both_paths(compiled: bool, case: Case, layout: Layout) -> None:
    kernels.enable(compiled)
    test_exact.test_layer_is_its_reference_over_many_steps(case, layout)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_goes_through_float32(dtype: torch.dtype) -> None:
    x, u, _ = batches("nchw", torch.float32, "last")
    found = []
    for compiled in (True, False):
        kernels.enable(compiled)
        torch.manual_seed(0)
        layer = norms.BatchNorm(5, group=2)
        v = x.to(dtype).requires_grad_()
        y = layer(v)
        y.backward(u.to(dtype))
        found.append((y, v.grad, layer.weight.grad, layer.running_var))
    for got, wanted in zip(*found, strict=True):
        assert got.dtype == wanted.dtype
        torch.testing.assert_close(
            got, wanted, rtol=1e-2 if got.dtype == dtype else 1e-5, atol=1e-3
        )


# -- building --------------------------------------------------------------------------------------


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder without kernels."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "normrepro"


@needs_compiler
def test_built_once_with_one_line(empty_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert building.library("float") is not None
    assert building.library("float") is not None
    (file,) = empty_cache.iterdir()
    assert [str(file) in record.message for record in caplog.records] == [True]


@needs_compiler
def test_several_may_build_at_once_and_a_broken_file_is_replaced(empty_cache: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        assert None not in pool.map(building.library, ["float"] * 3)
    (file,) = empty_cache.iterdir()
    file.unlink()
    file.write_bytes(b"no library")
    assert building.library("float") is not None
    assert [f.stat().st_size > 1000 for f in empty_cache.iterdir()] == [True]


def test_no_compiler_is_silent(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(empty_cache))
    monkeypatch.delenv("CC", raising=False)
    with caplog.at_level(logging.INFO):
        assert building.library("float") is None
    assert not caplog.records


def test_a_compiler_that_fails_is_no_compiler(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", "false")
    assert building.library("float") is None
    assert list(empty_cache.iterdir()) == []
    assert ["cannot be built" in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize(
    ("value", "used"), [("0", False), pytest.param("1", True, marks=needs_compiler)]
)
def test_environment_switches_kernels_off(value: str, used: bool) -> None:
    code = (
        "import torch; from normrepro.norms import kernels; print(kernels.usable(torch.ones(2, 2)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(NORMREPRO_KERNELS=value),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(used)]


@pytest.mark.parametrize("x", [torch.empty(0, 3), torch.ones(2, 3, dtype=torch.int32)])
def test_what_kernels_do_not_take(x: Tensor) -> None:
    assert not kernels.usable(x)
    assert not kernels.usable(x.to("meta"))
