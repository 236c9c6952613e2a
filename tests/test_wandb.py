"""W&B is a mirror: one run per run, across resume and sweeps, and no condition for anything."""

import json
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from normrepro.config import compose
from normrepro.distributed import Ranks
from normrepro.training.wandb_log import Mirror, choose_mode, labels
from tests.conftest import ROOT, SMALL, only_run
from tests.test_resume import kill_somewhere


def chunks(content: bytes) -> Iterator[bytes]:
    """Cut a .wandb file into its records: LevelDB's log format, after a header of 7 bytes."""
    block, position, record = 32768, 7, b""
    while position + 7 <= len(content):
        if block - position % block < 7:
            position += block - position % block
        size, kind = struct.unpack_from("<HB", content, position + 4)
        record += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a whole record, or its last part
            yield record
            record = b""


def history(folder: Path) -> list[dict[str, str]]:
    """Read the rows of the only offline W&B run below a run's directory."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    rows = []
    for chunk in chunks(file.read_bytes()):
        line = wandb_internal_pb2.Record()
        line.ParseFromString(chunk)
        if line.WhichOneof("record_type") == "history":
            rows.append({i.key or i.nested_key[0]: i.value_json for i in line.history.item})
    return rows


@pytest.mark.filterwarnings("ignore")
def test_one_offline_run_with_every_epoch_once_also_across_a_kill(
    start: Callable, tmp_path: Path
) -> None:
    arguments = ["norm=mabn", "recipe.epochs=6", "run.save_every=0"]
    root = tmp_path / "runs"
    kill_somewhere([*SMALL, *arguments, f"run.root={root}"], root, 20, WANDB_MODE="offline")
    done = start(*arguments, WANDB_MODE="offline")
    assert "goes on at step" in done.stderr, done.stderr
    rows = history(only_run(root))
    assert [row["epoch"] for row in rows] == [str(i) for i in range(1, 7)]
    assert {"lr", "train_loss", "loss", "error", "images_per_second"} <= rows[0].keys()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_a_sweep_has_one_wandb_run_per_run(start: Callable, tmp_path: Path) -> None:
    done = start("-m", "norm=bn,gn", "norm.layer.momentum=0.1", "scale=smoke", WANDB_MODE="offline")
    assert (
        done.returncode != 0
    )  # GroupNorm has no momentum: its job fails, and W&B's run is closed all the same
    done = start("-m", "norm=bn,mabn", "scale=smoke", WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    folders = [p for p in (tmp_path / "runs").iterdir() if (p / "result.json").exists()]
    assert len(folders) == 2
    assert all(len(history(folder)) == 1 for folder in folders)


def test_no_network_costs_a_warning_and_changes_nothing(start: Callable, tmp_path: Path) -> None:
    begin = time.monotonic()
    done = start(
        "norm=bn",
        "scale=smoke",
        WANDB_MODE="online",
        WANDB_API_KEY="0" * 40,
        WANDB_BASE_URL="http://127.0.0.1:9",
        WANDB_INIT_TIMEOUT="3",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the run goes on without it") == 1
    assert (only_run(tmp_path / "runs") / "result.json").exists()
    assert len(history(only_run(tmp_path / "runs"))) == 1  # for `wandb sync`
    assert time.monotonic() - begin < 60


def test_modes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert choose_mode("auto") == "offline"
    assert choose_mode("disabled") == "disabled"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password key\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert choose_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert choose_mode("auto") == "disabled"


def test_groups_are_paper_and_table() -> None:
    place = ["run.paper=mabn", "run.table=table1", "run.cell='brn_small error'"]
    names = labels(compose([*place, "scale=proxy", "norm=brn"]))
    assert names["group"] == "mabn/table1/proxy"
    assert names["job_type"] == "brn_small error"
    assert set(names["tags"]) == {"mabn", "table1", "brn_small error", "proxy", "brn", "digits"}


@pytest.fixture
def refusing(request: pytest.FixtureRequest) -> Iterator[str]:
    """A W&B server that answers every question with the same error."""
    code, text = request.param

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.dumps({"errors": [{"message": text}]}).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "refusing",
    [(401, "the key is wrong"), (403, "storage quota exceeded")],
    indirect=True,
    ids=["key", "quota"],
)
def test_a_server_that_refuses_costs_a_warning_and_leaves_a_run_to_sync(
    start: Callable, tmp_path: Path, refusing: str
) -> None:
    done = start(
        *("norm=bn", "recipe.epochs=3"),
        WANDB_MODE="online",
        WANDB_API_KEY="0" * 40,
        WANDB_BASE_URL=refusing,
        WANDB_INIT_TIMEOUT="3",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the run goes on without it") == 1
    assert "wandb sync" in done.stderr
    folder = only_run(tmp_path / "runs")
    assert [row["epoch"] for row in history(folder)] == ["1", "2", "3"]
    assert json.loads((folder / "result.json").read_text())["status"] == "finished"


def test_without_wandb_a_run_goes_on(start: Callable, tmp_path: Path) -> None:
    (tmp_path / "wandb.py").write_text("raise ImportError('not installed')\n")
    place = f"{tmp_path}:{ROOT}"
    done = start("norm=bn", "scale=smoke", WANDB_MODE="offline", PYTHONPATH=place)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the run goes on without it") == 1
    assert "not installed" in done.stderr


class Broken:
    """A W&B run whose connection breaks after a row."""

    step = 0

    def __init__(self, mode: str, log: list[dict]) -> None:
        self.mode, self.rows, self.summary = mode, log, {}

    def log(self, row: dict, step: int) -> None:
        if self.mode == "online" and self.rows:
            raise ConnectionError("broken")
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        pass


def test_a_connection_that_breaks_leaves_the_whole_run_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened: list[tuple[str, list[dict]]] = []

    def init(mode: str, **_: object) -> Broken:
        opened.append((mode, []))
        return Broken(mode, opened[-1][1])

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=dict))
    monkeypatch.setenv("WANDB_MODE", "online")
    cfg = compose([f"run.root={tmp_path}"])
    with Mirror(cfg, Ranks(0, 1, torch.device("cpu")), []) as mirror:
        for step in (1, 2, 3):
            mirror.log({"step": step})
        mirror.finish({"environment": {}, "status": "finished", "metrics": {"error": 1.0}})
    assert opened == [("online", [{"step": 1}]), ("offline", [{"step": s} for s in (1, 2, 3)])]
    assert caplog.text.count("the run goes on without it") == 1
