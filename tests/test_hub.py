"""Downloads from a local stand-in of the hub: which files, the cache, and errors offline."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

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
        "other.safetensors": b"not requested",
        "model.safetensors.index.json": json.dumps(
            {"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}
        ).encode(),
        "m-1.safetensors": save({"a": torch.ones(1)}),
        "m-2.safetensors": save({"b": torch.ones(2)}),
    },
    "owner/pickle": {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
}


class Hub(BaseHTTPRequestHandler):
    """The few endpoints of the hub that a download needs."""

    requested: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"] and (files := FILES.get("/".join(parts[2:4]))):
            listed = [
                {"type": "file", "path": name, "size": len(files[name]), "oid": COMMIT}
                for name in files
            ]
            model_info = {
                "id": "/".join(parts[2:4]),
                "sha": COMMIT,
                "siblings": [{"rfilename": name} for name in files],
            }
            self.answer(json.dumps(listed if "tree" in parts else model_info).encode())
        elif parts[2:3] == ["resolve"] and (
            content := FILES.get("/".join(parts[:2]), {}).get("/".join(parts[4:]))
        ):
            self.requested.append("/".join(parts[4:]))
            self.answer(content)
        else:
            self.send_response(404)
            self.send_header(
                "X-Error-Code", "RepoNotFound" if parts[0] == "api" else "EntryNotFound"
            )
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET  # noqa: N815 - named by http.server

    def answer(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """The files that were requested, in order."""
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
    Hub.requested.clear()
    yield Hub.requested
    server.shutdown()
    server.server_close()


def test_only_safe_files_are_downloaded(hub: list[str]) -> None:
    opened = open_weights("owner/toy")
    assert torch.equal(opened.tensors["w"], torch.arange(3.0))
    assert opened.config == {"model_type": "toy"}
    assert set(hub) == {"config.json", "vocab.txt", "model.safetensors"}


def test_shards_of_the_index_are_downloaded(hub: list[str]) -> None:
    assert set(open_weights("owner/shards").tensors) == {"a", "b"}
    assert set(hub) == {
        "config.json",
        "model.safetensors.index.json",
        "m-1.safetensors",
        "m-2.safetensors",
    }


def test_model_without_safetensors_is_refused(hub: list[str]) -> None:
    with pytest.raises(
        SensoriumError,
        match=r"owner/pickle has no safetensors on the hub.*sensorium convert-checkpoint",
    ):
        open_weights("owner/pickle")
    assert "pytorch_model.bin" not in hub


def test_unknown_model_is_refused(hub: list[str]) -> None:
    with pytest.raises(SensoriumError, match="owner/nothing cannot be fetched"):
        open_weights("owner/nothing")


def test_cached_model_loads_offline(hub: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    open_weights("owner/toy")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.clear()
    assert torch.equal(open_weights("owner/toy").tensors["w"], torch.arange(3.0))
    assert not hub
    with pytest.raises(SensoriumError, match=r"owner/shards is not a local folder.*HF_HUB_OFFLINE"):
        open_weights("owner/shards")
