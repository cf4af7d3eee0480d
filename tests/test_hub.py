"""The hub, played by a server on this machine: what is asked for, what is kept, and what is said when it is away."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save

from sensorium.errors import SensoriumError
from sensorium.pretrained.weight_files import open_weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "owner/toy": {
        "config.json": b'{"model_type": "toy"}',
        "vocab.txt": b"[UNK]\n",
        "README.md": b"# Toy",
        "code.py": b"1/0",
        "pytorch_model.bin": b"pickle",
        "model.safetensors": save({"w": torch.arange(3.0)}),
    },
    "owner/shards": {
        "config.json": b"{}",
        "other.safetensors": b"not asked for",
        "model.safetensors.index.json": json.dumps(
            {"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}
        ).encode(),
        "m-1.safetensors": save({"a": torch.ones(1)}),
        "m-2.safetensors": save({"b": torch.ones(2)}),
    },
    "owner/pickle": {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
}


class Hub(BaseHTTPRequestHandler):
    """The few addresses of the hub that a download needs."""

    asked: list[str] = []

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"] and (files := FILES.get("/".join(parts[2:4]))):
            listed = [
                {"type": "file", "path": name, "size": len(files[name]), "oid": COMMIT}
                for name in files
            ]
            about = {
                "id": "/".join(parts[2:4]),
                "sha": COMMIT,
                "siblings": [{"rfilename": name} for name in files],
            }
            self.answer(json.dumps(listed if "tree" in parts else about).encode())
        elif parts[2:3] == ["resolve"] and (
            content := FILES.get("/".join(parts[:2]), {}).get("/".join(parts[4:]))
        ):
            self.asked.append("/".join(parts[4:]))
            self.answer(content)
        else:
            self.send_response(404)
            self.send_header(
                "X-Error-Code", "RepoNotFound" if parts[0] == "api" else "EntryNotFound"
            )
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET

    def answer(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """What is asked of the hub, in order."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    for name, value in {
        "ENDPOINT": address,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": False,
        "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    Hub.asked.clear()
    yield Hub.asked
    server.shutdown()
    server.server_close()


def test_only_what_is_safe_is_asked_for(hub: list[str]) -> None:
    opened = open_weights("owner/toy")
    assert torch.equal(opened.tensors["w"], torch.arange(3.0))
    assert opened.config == {"model_type": "toy"}
    assert set(hub) == {"config.json", "vocab.txt", "model.safetensors"}


def test_shards_are_those_of_the_index(hub: list[str]) -> None:
    assert set(open_weights("owner/shards").tensors) == {"a", "b"}
    assert set(hub) == {
        "config.json",
        "model.safetensors.index.json",
        "m-1.safetensors",
        "m-2.safetensors",
    }


def test_a_model_without_safetensors_is_said(hub: list[str]) -> None:
    with pytest.raises(
        SensoriumError, match="owner/pickle has no safetensors on the hub.*sensorium convert"
    ):
        open_weights("owner/pickle")
    assert "pytorch_model.bin" not in hub


def test_a_model_that_is_not_there_is_said(hub: list[str]) -> None:
    with pytest.raises(SensoriumError, match="owner/nothing cannot be fetched"):
        open_weights("owner/nothing")


def test_what_was_fetched_is_there_without_a_network(
    hub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_weights("owner/toy")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.clear()
    assert torch.equal(open_weights("owner/toy").tensors["w"], torch.arange(3.0))
    assert not hub
    with pytest.raises(SensoriumError, match="owner/shards is not a local folder.*HF_HUB_OFFLINE"):
        open_weights("owner/shards")
