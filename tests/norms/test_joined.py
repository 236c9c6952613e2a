"""Synchronized statistics: over replicas of one process, and over real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from normrepro import norms
from tests.conftest import ROOT, environment


def test_joined_replicas_are_bn_on_the_joined_batch() -> None:
    layer = norms.BatchNorm(3, group=8, replicas=4).double()  # two groups of two replicas
    halves = [nn.BatchNorm1d(3).double() for _ in range(2)]
    x = torch.randn(16, 3, 5, dtype=torch.float64, requires_grad=True)
    gy = torch.randn_like(x)
    y = layer(x)
    expected = torch.cat([bn(part) for bn, part in zip(halves, x.chunk(2), strict=True)])
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    (gx,) = torch.autograd.grad(y, x, gy)
    torch.testing.assert_close(gx, torch.autograd.grad(expected, x, gy)[0], rtol=1e-12, atol=1e-12)
    for replica in range(4):
        torch.testing.assert_close(layer.running_var[replica], halves[replica // 2].running_var)


def test_a_group_that_joins_parts_of_replicas_is_refused() -> None:
    layer = norms.BatchNorm(3, group=6, replicas=4)
    with pytest.raises(ValueError, match="whole replicas"):
        layer(torch.randn(16, 3))


def test_processes_that_were_not_started_are_missed() -> None:
    with pytest.raises(ValueError, match="spans 2 processes, and 1 were started"):
        norms.BatchNorm(3, group=16)(torch.randn(8, 3))


WORKER = """
import sys, torch, torch.distributed as dist
from normrepro import norms
dist.init_process_group("gloo")
rank, counts = dist.get_rank(), eval(sys.argv[2])
generator = torch.Generator().manual_seed(0)
layer = norms.BatchNorm(3, **eval(sys.argv[3])).double()
out = []
for step in range(3):
    x, gy = (torch.randn(sum(counts), 3, 4, generator=generator, dtype=torch.float64) for _ in "xy")
    mine = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    part = (x[mine] + step).requires_grad_()
    layer.zero_grad()
    with norms.step(layer):
        y = layer(part)
        y.backward(gy[mine])
    out.append((y.detach(), part.grad, layer.weight.grad.clone()))
torch.save((out, layer.state_dict()), f"{sys.argv[1]}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.dist
@pytest.mark.parametrize(
    ("counts", "options"),
    [([4, 4], {"group": 8}), ([3, 6], {"processes": 2})],
    ids=["even", "uneven"],
)
def test_joined_processes_are_bn_on_the_joined_batch(
    tmp_path: Path, counts: list[int], options: dict[str, int]
) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    arguments = [str(tmp_path / "worker.py"), str(tmp_path), repr(counts), repr(options)]
    env = environment(PYTHONPATH=os.pathsep.join([str(ROOT)]))
    done = subprocess.run(
        [*start, *arguments], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    generator = torch.Generator().manual_seed(0)
    bn = nn.BatchNorm1d(3).double()
    for step in range(3):
        x, gy = (
            torch.randn(sum(counts), 3, 4, generator=generator, dtype=torch.float64) for _ in "xy"
        )
        whole = (x + step).requires_grad_()
        bn.zero_grad()
        y = bn(whole)
        y.backward(gy)
        found = [torch.cat([out[step][i] for out, _ in parts]) for i in (0, 1)]
        torch.testing.assert_close(found[0], y.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found[1], whole.grad, rtol=1e-12, atol=1e-12)
        total = parts[0][0][step][2] + parts[1][0][step][2]
        torch.testing.assert_close(total, bn.weight.grad, rtol=1e-12, atol=1e-12)
    for _, state in parts:
        for name, value in bn.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-12, atol=1e-12)
