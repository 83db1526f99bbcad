"""The Hugging Face hub's API for one repository at one commit, in a thread, on this machine."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import ones

from tests.pipeline import make_teacher
from tests.serving import running

REPOSITORY, COMMIT = "tiny/pipeline", "0123456789abcdef" * 2 + "01234567"
UNUSED = (
    "README.md",
    "v1-5-pruned.ckpt",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_flax_model.msgpack",
    "text_encoder/pytorch_model.bin",
    "text_encoder/model.fp16-00001-of-00002.safetensors",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "feature_extractor/preprocessor_config.json",
)
"""What Stable Diffusion's repository holds beside the files that are used."""
_LARGE = (".bin", ".ckpt", ".msgpack", ".safetensors")


def make_repository(folder: Path) -> Path:
    """An untrained teacher with everything around it that a real repository has."""
    make_teacher(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "model_index.json").write_text(json.dumps(index))
    for name in UNUSED:
        (folder / name).parent.mkdir(exist_ok=True)
        if name.endswith(".safetensors"):
            save_file({"x": ones(3)}, folder / name)
        else:
            (folder / name).write_bytes(b"{}")
    return folder


class HubServer(ThreadingHTTPServer):
    """Serves `root` as the repository's commit at `url`; large files come from another host,
    `store`, as the hub's do.

    Switches: `gated`, whether files are refused; `down`, whether everything is; `cuts`, per file
    name after how many bytes the connection breaks, one entry per body; `garbled`, names of files
    whose last bit is flipped on the way.

    Notes: `sent`, body bytes per file; `asked`, the path of every request.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.url = root, f"http://127.0.0.1:{self.server_port}"
        self.store = f"http://localhost:{self.server_port}"
        self.gated = self.down = False
        self.cuts: dict[str, list[int]] = {}
        self.garbled: set[str] = set()
        self.sent: Counter[str] = Counter()
        self.asked: list[str] = []

    def listing(self) -> list[dict[str, object]]:
        """Every file as the hub lists it, large ones with their SHA-256."""
        files = (path for path in sorted(self.root.rglob("*")) if path.is_file())
        return [_entry(str(path.relative_to(self.root)), path.read_bytes()) for path in files]


def _entry(name: str, data: bytes) -> dict[str, object]:
    entry = {"type": "file", "path": name, "size": len(data)}
    if not name.endswith(_LARGE):
        return entry | {"oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
    lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry | {"oid": hashlib.sha1(name.encode()).hexdigest(), "lfs": lfs}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HubServer

    def do_GET(self) -> None:
        here, path = self.server, unquote(urlsplit(self.path).path)
        here.asked.append(path)
        tree = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/(.+)", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        info = re.fullmatch(r"/api/models/([^/]+/[^/]+)", path)
        large = re.fullmatch(r"/large/(.+)", path)
        known = tree or file or info
        if here.down:
            self._answer(503)
        elif large:
            self._file(large[1], (here.root / large[1]).read_bytes())
        elif known is None or known[1] != REPOSITORY:
            self._answer(401, code="RepoNotFound")
        elif info:
            self._answer(200, json.dumps({"id": REPOSITORY, "sha": COMMIT}).encode())
        elif (tree or file)[2] != COMMIT:
            self._answer(404, code="RevisionNotFound")
        elif tree:
            self._answer(200, json.dumps(here.listing()).encode())
        else:
            self._resolve(file[3])

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _resolve(self, name: str) -> None:
        path = self.server.root / name
        if self.server.gated:
            self._answer(403, code="GatedRepo")
        elif not path.is_file():
            self._answer(404, code="EntryNotFound")
        elif not name.endswith(_LARGE):
            self._file(name, path.read_bytes())
        else:
            linked = _entry(name, path.read_bytes())["lfs"]
            self.send_response(302)
            self.send_header("Location", f"{self.server.store}/large/{name}")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-ETag", f'"{linked["oid"]}"')
            self.send_header("X-Linked-Size", str(linked["size"]))
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _file(self, name: str, data: bytes) -> None:
        """The body from where it was asked for, to the end or to the cut."""
        etag = _entry(name, data)["oid"]
        begun = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if name in self.server.garbled:
            data = data[:-1] + bytes([data[-1] ^ 1])
        part = data[int(begun[1]) :] if begun else data
        self.send_response(206 if begun else 200)
        if begun:
            self.send_header("Content-Range", f"bytes {begun[1]}-{len(data) - 1}/{len(data)}")
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if cuts := self.server.cuts.get(name):
            part, self.close_connection = part[: cuts.pop(0)], True
        self.server.sent[name] += len(part)
        self.wfile.write(part)

    def _answer(self, status: int, body: bytes = b"", code: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def serving(root: Path) -> AbstractContextManager[HubServer]:
    """A server of the repository, which stops at the end of the context."""
    return running(HubServer(root))


def use(patch: pytest.MonkeyPatch, server: HubServer, cache: Path) -> None:
    """This process takes the server for the hub, and waits for nothing before it tries again."""
    patch.setattr(constants, "ENDPOINT", server.url)
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr("time.sleep", lambda seconds: None)
