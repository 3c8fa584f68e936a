"""Addresses, and what is said where an address, a package or a credential is wrong."""

import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from urllib.parse import unquote, urlsplit

import fsspec
import pytest

from fastad import remote
from fastad.errors import FastadError
from fastad.remote import checked, connect, with_retries

FILES = {"sets/digits/manifest.json": b"{}", "sets/digits/train-00000.tar": bytes(range(256)) * 100}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s4://bucket/set", "unknown kind of address 's4://': did you mean s3://"),
        ("S3://bucket/set", "unknown kind of address"),
        ("s3://", "give one such as s3://bucket/shards/digits"),
        ("s3://mine", "s3://mine is not the address of a shard set: give one such as s3://mine/shards/digits"),
        ("s3://mine//set", "is not the address"),
        ("s3://mine/../../set", "is not the address"),
        ("https://host/set?signature=x", "an address at host holds a password, . or #"),
        ("https://me:secret@host/set", "an address at host holds .*credentials are read from ~/.netrc"),
    ],
)
def test_what_cannot_be_an_address_is_said(url: str, message: str) -> None:
    with pytest.raises(FastadError, match=message) as error:
        checked(url)
    assert "secret" not in str(error.value)


def test_addresses_end_without_a_slash() -> None:
    assert checked("hf://datasets/me/sets@main/digits//") == "hf://datasets/me/sets@main/digits"


@pytest.mark.parametrize(
    ("url", "package"),
    [("s3://b/s", "s3fs"), ("gs://b/s", "gcsfs"), ("hf://d/s", "huggingface_hub"), ("http://h/s", "aiohttp")],
)
def test_a_missing_package_is_said_with_its_remedy(url: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(import_module("fsspec.registry")._registry, url.partition(":")[0], raising=False)
    for name in list(sys.modules):
        if name.split(".")[0] == package:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(FastadError, match=r"needs packages that are not installed .*pip install 'fastad\[remote\]'"):
        connect(url)


class StandIn(BaseHTTPRequestHandler):
    """As much of Google's JSON API and of the Hugging Face Hub's as reading needs, for one bucket and one repository.

    There are no servers of these to run on one machine; S3's is in `test_stage.py`.
    """

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"(/download)?/storage/v1/b/bucket/o/(.+)", path):
            name = found[2]
            if name not in FILES or found[1]:
                self.send_file(name)
            else:
                self.send(200, json.dumps({"name": name, "bucket": "bucket", "size": len(FILES[name])}).encode())
        elif found := re.fullmatch(r"/api/datasets/me/repo/tree/main/(.+)", path):
            inside = [name for name in FILES if name.rpartition("/")[0] == found[1]]
            listed = [{"type": "file", "path": name, "size": len(FILES[name]), "oid": "0" * 40} for name in inside]
            self.send(200 if inside else 404, json.dumps(listed).encode())
        elif path == "/api/datasets/me/repo":
            self.send(200, json.dumps({"id": "me/repo", "sha": "0" * 40}).encode())
        elif found := re.fullmatch(r"/datasets/me/repo/resolve/main/(.+)", path):
            self.send_file(found[1])
        else:
            self.send(404, b"{}")

    def send_file(self, name: str) -> None:
        if name not in FILES:
            self.send(404, b'{"error": {"code": 404, "message": "Not Found"}}')
        elif span := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            self.send(206, FILES[name][int(span[1]) : int(span[2]) + 1])
        else:
            self.send(200, FILES[name])

    def send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with ThreadingHTTPServer(("127.0.0.1", 0), StandIn) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon", "endpoint_url": url})
        monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": url})
        yield
        server.shutdown()


@pytest.mark.parametrize("url", ["gs://bucket/sets/digits", "hf://datasets/me/repo/sets/digits"])
def test_google_and_hugging_face_are_read_in_chunks(url: str, stand_in: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "CHUNK_BYTES", 10_000)
    folder = connect(url)
    chunks = list(folder.chunks("train-00000.tar"))
    assert [len(chunk) for chunk in chunks] == [10_000, 10_000, 5_600]
    assert b"".join(chunks) == FILES["sets/digits/train-00000.tar"]
    with pytest.raises(FastadError, match=rf"{url}/test\.tar is missing .*check the address") as error:
        with_retries(f"{url}/test.tar", lambda: list(folder.chunks("test.tar")), (60,), threading.Event())
    assert "\n" not in str(error.value)
