"""EvalNorm's alpha and beta over several processes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, environment
from tests.oracles.checks import close

WORKER = """
import sys, torch, torch.distributed as dist
from normrepro import norms
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
net = torch.nn.ModuleList(norms.EvalNorm(3, 2, 2 // world, lr=0.1).double() for _ in range(2))
for step in range(6):
    shares = torch.randn(2, 4, 3, 5, dtype=torch.float64) + 0.1 * step
    x = shares[rank:] if world == 1 else shares[rank : rank + 1]
    with norms.step(net):
        net[0](x.flatten(0, 1))
        if step % 2 == 0 or (step == 3 and rank == 0):
            net[1](x.flatten(0, 1))
torch.save(net.state_dict(), f"{sys.argv[1]}/{world}-{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.dist
def test_two_processes_are_two_replicas(tmp_path: Path) -> None:
    """Alpha and beta come from all devices, and agree where one of them did not run the layer."""
    (tmp_path / "worker.py").write_text(WORKER)
    for world in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc_per_node={world}", str(tmp_path / "worker.py"), str(tmp_path)]
        env = environment(PYTHONPATH=str(ROOT))
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    files = [tmp_path / name for name in ("1-0.pt", "2-0.pt", "2-1.pt")]
    one, first, second = (torch.load(file, weights_only=True) for file in files)
    for name in ("0.alpha", "0.beta"):
        assert one[name] not in (0, 0.25)
        close(first[name], one[name])
        assert torch.equal(first[name], second[name])
        assert torch.equal(first[name.replace("0", "1")], second[name.replace("0", "1")])
    both = torch.stack([first["0.running_var"], second["0.running_var"]])
    close(both, one["0.running_var"])
