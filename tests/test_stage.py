"""Staging: what arrives is what was converted, whatever happens on the way, and a mistake is one line."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from fastad import cli
from fastad import stage as stage_module
from fastad.errors import FastadError
from fastad.manifest import COLUMNS, open_set
from fastad.recipe import Recipe, dump
from fastad.shard import convert
from fastad.stage import stage
from fastad.verify import verify


class Web(ThreadingHTTPServer):
    """Serves a folder. `trouble` maps a file's name to what is done in place of answering; True means: answer, too."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.folder = folder
        self.asked: list[str] = []
        self.trouble: dict[str, Callable[[Handler], bool]] = {}
        self.ranges = "none"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/shards"


class Handler(SimpleHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        self.server.asked.append(name)
        if self.server.trouble.get(name, lambda _: True)(self):
            super().do_GET()

    def end_headers(self) -> None:
        self.send_header("Accept-Ranges", self.server.ranges)
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


def answer(status: int) -> Callable[[Handler], bool]:
    def trouble(handler: Handler) -> bool:
        handler.send_error(status)
        return False

    return trouble


def cut_short(handler: Handler) -> bool:
    """Promises the file and sends its half."""
    data = Path(handler.translate_path(handler.path)).read_bytes()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    handler.close_connection = True
    return False


def once(trouble: Callable[[Handler], bool]) -> Callable[[Handler], bool]:
    left = [trouble]
    return lambda handler: left.pop()(handler) if left else True


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stage_module, "PAUSES_S", (0.0, 0.0, 0.0))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def source(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard home with "blobs" in five train shards and two test shards."""
    source = tmp_path_factory.mktemp("source") / "shards"
    convert(str(home / "blobs.py"), None, source, workers=1, shard_samples=30)
    shutil.copytree(home / "extras", source / "extras")
    return source


@pytest.fixture
def web(source: Path, tmp_path: Path) -> Iterator[Web]:
    shutil.copytree(source, tmp_path / "web" / "shards")
    with Web(tmp_path / "web") as web:
        threading.Thread(target=web.serve_forever, args=(0.05,), daemon=True).start()
        yield web
        web.shutdown()


@pytest.fixture(scope="module")
def s3_server(source: Path) -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        region_name="us-east-1",
        aws_access_key_id="someone",
        aws_secret_access_key="secret",
    )
    client.create_bucket(Bucket="bucket")
    for path in source.rglob("*.*"):
        if path.is_file():
            client.upload_file(str(path), "bucket", f"shards/{path.relative_to(source)}")
    client.close()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the shard home in a bucket."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nowhere",
        "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
    }.items():
        monkeypatch.setenv(name, value)
    return "s3://bucket/shards"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tars(asked: list[str]) -> list[str]:
    return sorted(name for name in asked if name.endswith(".tar"))


ALL_TARS = [f"test-0000{i}.tar" for i in range(2)] + [f"train-0000{i}.tar" for i in range(4)]


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """`fastad …` in this process: exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["fastad", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


def test_a_set_in_a_bucket_arrives_byte_for_byte(s3: str, source: Path, cache: Path) -> None:
    folder = stage(f"{s3}/blobs")
    assert folder == cache / "s3" / "bucket" / "shards" / "blobs"
    assert contents(folder) == contents(source / "blobs")
    assert verify(folder, "decode").fingerprint == open_set(source / "blobs").fingerprint


@pytest.mark.parametrize("ranges", ["bytes", "none"])
def test_a_set_on_a_web_server_arrives_byte_for_byte_and_once(web: Web, ranges: str) -> None:
    web.ranges = ranges
    folder = stage(f"{web.url}/blobs/")
    assert contents(folder) == contents(web.folder / "shards" / "blobs")
    assert tars(web.asked) == ALL_TARS
    web.asked.clear()
    assert stage(f"{web.url}/blobs") == folder
    assert web.asked == ["manifest.json"]


def test_training_from_a_bucket_stages_what_the_recipe_reads(
    s3: str,
    recipe: Recipe,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "tiny.toml").write_text(dump(recipe))
    command = ["train", tmp_path / "tiny.toml", "--class", "middle", "--objective", "hsc", "--device", "cpu"]
    command += ["--set", "optim.epochs=1", "--set", "optim.milestones=[]", "--out", tmp_path / "runs"]
    code, out, err = run(monkeypatch, capsys, *command, "--shards", s3)
    assert code == 0, err
    assert "middle" in out
    staged = cache / "s3" / "bucket" / "shards"
    assert sorted(path.name for path in staged.iterdir() if path.is_dir()) == ["blobs", "extras"]
    assert f"stage blobs: {sum(shard.bytes for shard in open_set(staged / 'blobs').shards):,}/" in err

    monkeypatch.setenv("FASTAD_SHARDS", f"{s3}/")
    code, _, err = run(monkeypatch, capsys, *command)
    assert code == 0, err
    assert "done already" in err
    assert "stage blobs" not in err


def test_stage_verify_and_inspect_take_addresses(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "scratch"
    code, out, _ = run(monkeypatch, capsys, "stage", f"{web.url}/blobs", f"{web.url}/extras", "--to", home)
    assert (code, out.split()) == (0, [str(home / "blobs"), str(home / "extras")])
    assert contents(home / "blobs") == contents(web.folder / "shards" / "blobs")
    assert (
        "whole, 180 images in 6 shards (decode)"
        in run(monkeypatch, capsys, "verify", f"{web.url}/blobs", "--level", "decode")[1]
    )
    assert json.loads(run(monkeypatch, capsys, "inspect", f"{web.url}/blobs", "--json")[1])["shards"] == 6


def test_what_passes_is_tried_again(web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    web.trouble = {
        "manifest.json": once(answer(503)),
        "offset.npy": once(cut_short),
        "train-00001.tar": once(cut_short),
        "test-00000.tar": once(answer(500)),
    }
    folder = stage(f"{web.url}/blobs")
    assert contents(folder) == contents(web.folder / "shards" / "blobs")
    assert tars(web.asked) == sorted([*ALL_TARS, "train-00001.tar", "test-00000.tar"])
    said = capsys.readouterr().err
    assert said.count("trying again in 0 s") == 4
    total = sum(shard.bytes for shard in open_set(folder).shards)
    assert f"stage blobs: {total:,}/{total:,} bytes" in said  # what was fetched twice counts once


@pytest.mark.parametrize(
    ("name", "trouble", "message"),
    [
        ("train-00002.tar", cut_short, r"train-00002\.tar cannot be read \(ClientPayloadError"),
        ("train-00002.tar", answer(404), r"train-00002\.tar is missing .*upload the set again"),
        ("train-00002.tar", answer(403), r"train-00002\.tar may not be read .*403.*check the credentials"),
        ("train-00002.tar", answer(500), r"train-00002\.tar cannot be read .*500"),
        ("key.npy", answer(404), r"samples/key\.npy is missing"),
        ("manifest.json", answer(404), r"/blobs is not a shard set: found no manifest\.json there"),
        ("manifest.json", answer(401), r"manifest\.json may not be read .*401"),
    ],
)
def test_what_does_not_pass_is_one_line(
    web: Web, name: str, trouble: Callable[[Handler], bool], message: str, cache: Path
) -> None:
    web.trouble[name] = trouble
    with pytest.raises(FastadError, match=message) as error:
        stage(f"{web.url}/blobs")
    assert "\n" not in str(error.value)
    assert web.asked.count(name) == (4 if trouble is cut_short or "500" in message else 1)
    assert not list(cache.rglob("manifest.json"))
    assert not list(cache.rglob(f"*{name}*"))


def change_a_byte(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(5000)
        file.write(b"changed")


def lengthen(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


@pytest.mark.parametrize(
    ("name", "harm", "message"),
    [
        ("train-00003.tar", change_a_byte, "its SHA-256 is not the manifest's"),
        ("train-00003.tar", lengthen, r"[\d,]+ bytes arrived, the manifest says [\d,]+"),
        ("samples/offset.npy", lambda path: os.truncate(path, 400), "its SHA-256 is not the manifest's"),
        ("samples/width.npy", change_a_byte, "its SHA-256 is not the manifest's"),
    ],
)
def test_what_is_damaged_is_named_and_fetched_again_once_mended(
    web: Web, source: Path, name: str, harm: Callable[[Path], None], message: str
) -> None:
    path = web.folder / "shards" / "blobs" / name
    harm(path)
    with pytest.raises(FastadError, match=f"/blobs/{name} is damaged: .*{message}.*; upload the set again"):
        stage(f"{web.url}/blobs")
    shutil.copy(source / "blobs" / name, path)
    folder = stage(f"{web.url}/blobs")
    assert contents(folder) == contents(source / "blobs")


def begin(web: Web, *arguments: object) -> subprocess.Popen[str]:
    """`fastad stage` of blobs in a process of its own, in which a file that is held up is waited for."""
    command = [sys.executable, "-m", "fastad", "stage", f"{web.url}/blobs", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def hold_up(web: Web, name: str) -> tuple[threading.Event, threading.Event]:
    """Makes a file wait after its first half: the events are set when it is reached, and to let it go on."""
    reached, go_on = threading.Event(), threading.Event()

    def trouble(handler: Handler) -> bool:
        data = Path(handler.translate_path(handler.path)).read_bytes()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2])
        reached.set()
        go_on.wait(30)
        handler.wfile.write(data[len(data) // 2 :])
        return False

    web.trouble[name] = trouble
    return reached, go_on


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_killed_staging_fetches_only_what_it_had_not_finished(web: Web, cache: Path) -> None:
    reached, go_on = hold_up(web, "train-00001.tar")
    process = begin(web)
    try:
        assert reached.wait(30)
        wait_for(lambda: (len(list(cache.rglob("t*.tar"))), len(list(cache.rglob("*.npy")))) == (5, len(COLUMNS)))
        folder = next(cache.rglob("test-00000.tar")).parent
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finally:
        process.kill()
        go_on.set()
    assert not (folder / "manifest.json").exists()
    assert not (folder / "train-00001.tar").exists()
    with pytest.raises(FastadError, match="found an unfinished one: run its command again"):
        open_set(folder)

    web.trouble.clear()
    web.asked.clear()
    assert stage(f"{web.url}/blobs") == folder
    assert web.asked == ["manifest.json", "train-00001.tar"]
    assert contents(folder) == contents(web.folder / "shards" / "blobs")


def test_two_processes_fetch_a_set_once(web: Web, tmp_path: Path) -> None:
    reached, go_on = hold_up(web, "train-00001.tar")
    first = begin(web, "--to", tmp_path / "a")
    try:
        assert reached.wait(30)
        second = begin(web, "--to", tmp_path / "a")
        try:
            assert second.stderr is not None
            assert "another process is staging" in second.stderr.readline()
            go_on.set()
            assert second.communicate()[0].strip() == first.communicate()[0].strip() == str(tmp_path / "a" / "blobs")
        finally:
            second.kill()
    finally:
        go_on.set()
        first.kill()
    assert (first.returncode, second.returncode) == (0, 0)
    assert tars(web.asked) == ALL_TARS
    assert verify(tmp_path / "a" / "blobs", "decode").folder == tmp_path / "a" / "blobs"


def convert_other(web: Web, home: Path) -> None:
    """Puts another set in the place of blobs, with shards of the same names."""
    shutil.rmtree(web.folder / "shards" / "blobs")
    source = (home / "blobs.py").read_text().replace("default_rng(1)", "default_rng(3)")
    (web.folder / "blobs.py").write_text(source)
    convert(str(web.folder / "blobs.py"), None, web.folder / "shards", workers=1, shard_samples=30)


def test_a_set_that_has_changed_is_refused_and_the_copy_kept(web: Web, home: Path, source: Path) -> None:
    folder = stage(f"{web.url}/blobs")
    convert_other(web, home)
    with pytest.raises(FastadError, match=f"is not the set that was staged to {folder}: .*--shards {folder.parent}"):
        stage(f"{web.url}/blobs")
    assert contents(folder) == contents(source / "blobs")
    shutil.rmtree(folder)
    assert contents(stage(f"{web.url}/blobs")) == contents(web.folder / "shards" / "blobs")


def test_a_set_that_changes_while_it_is_staged_is_not_mixed(
    web: Web, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    web.trouble["train-00003.tar"] = answer(404)
    with pytest.raises(FastadError, match="is missing"):
        stage(f"{web.url}/blobs")
    convert_other(web, home)
    web.trouble.clear()
    folder = stage(f"{web.url}/blobs")
    assert "has changed since its staging began: starting anew" in capsys.readouterr().err
    assert contents(folder) == contents(web.folder / "shards" / "blobs")


def test_without_network_the_copy_serves_and_it_is_said(web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    folder = stage(f"{web.url}/blobs")
    web.shutdown()
    web.server_close()
    capsys.readouterr()
    assert stage(f"{web.url}/blobs") == folder
    said = capsys.readouterr().err
    assert f"cannot be read (ClientConnectorError: Cannot connect to host 127.0.0.1:{web.server_port}" in said
    assert f"Going on with the copy in {folder}" in said
    assert "trying again" not in said
    with pytest.raises(FastadError, match=r"extras/manifest\.json cannot be read .*check the address and the network"):
        stage(f"{web.url}/extras")


def test_a_small_disk_is_said_before_anything_is_fetched(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(stage_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(FastadError, match=r"blobs needs [\d,]+ bytes, 1,000 are free: .*FASTAD_CACHE"):
        stage(f"{web.url}/blobs")
    assert web.asked == ["manifest.json"]


def test_a_cache_that_may_not_be_written_is_said(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTAD_CACHE", str(tmp_path / "file"))
    with pytest.raises(FastadError, match=r"cannot write .*: Not a directory; .*choose another folder"):
        stage(f"{web.url}/blobs")


def test_an_unfinished_conversion_is_not_overwritten(web: Web, tmp_path: Path) -> None:
    (tmp_path / "here" / "blobs" / ".partial" / "part-1-of-1").mkdir(parents=True)
    with pytest.raises(FastadError, match="blobs holds an unfinished conversion"):
        stage(f"{web.url}/blobs", tmp_path / "here")
    assert (tmp_path / "here" / "blobs" / ".partial" / "part-1-of-1").is_dir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: facts | {"schema_version": 1}, "has schema 1, this fastad reads"),
        (lambda facts: {"schema_version": facts["schema_version"]}, "is not a manifest of fastad .*KeyError: 'shards'"),
        (
            lambda facts: facts | {"shards": [facts["shards"][0] | {"name": "../../evil.tar"}]},
            r"is not a manifest of fastad .*a shard is called '\.\./\.\./evil\.tar'",
        ),
    ],
)
def test_a_manifest_of_something_else_is_refused(web: Web, change: Callable[[dict], dict], message: str) -> None:
    path = web.folder / "shards" / "blobs" / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_bytes()))))
    with pytest.raises(FastadError, match=message):
        stage(f"{web.url}/blobs")
    assert web.asked == ["manifest.json"]


def test_a_page_in_place_of_a_manifest_is_refused(web: Web) -> None:
    (web.folder / "shards" / "blobs" / "manifest.json").write_text("<html>Please log in</html>")
    with pytest.raises(FastadError, match="is not a manifest of fastad .*check the address"):
        stage(f"{web.url}/blobs")


def test_mistakes_about_buckets_are_one_line(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FastadError, match=r"blob is not a shard set: found no manifest\.json there"):
        stage(f"{s3}/blob")
    with pytest.raises(FastadError, match=r"s3://buckett/shards/blobs is not a shard set: .*bucket"):
        stage("s3://buckett/shards/blobs")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(FastadError, match=r"may not be read \(NoCredentialsError.*AWS_PROFILE, .*FSSPEC_S3_ANON"):
        stage(f"{s3}/blobs")


def test_wrong_credentials_are_one_line(s3: str, s3_server: str) -> None:
    import requests

    requests.post(f"{s3_server}/moto-api/reset-auth", data="0")
    try:
        with pytest.raises(
            FastadError, match=r"may not be read \(PermissionError.*check the credentials \(AWS_PROFILE"
        ):
            stage(f"{s3}/blobs")
    finally:
        requests.post(f"{s3_server}/moto-api/reset-auth", data="Infinity")


def test_an_address_is_no_place_to_convert_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(monkeypatch, capsys, "shard", "digits", "--out", "s3://bucket/shards")
    assert code == 2
    assert "s3://bucket/shards is an address, and shards are written to folders: choose one with --out" in err
    monkeypatch.setenv("FASTAD_SHARDS", "s3://bucket/shards")
    assert "is an address" in run(monkeypatch, capsys, "shard", "digits")[2]


def test_the_sets_of_a_recipe_are_those_that_training_opens(
    recipe: Recipe, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastad import sets

    data = replace(recipe.data, oe_exclude_duplicates_of="blobs")
    opened: list[str] = []
    monkeypatch.setattr(sets, "open_set", lambda folder: (opened.append(folder.name), open_set(folder))[1])
    sets.open_sets(replace(recipe, data=data), home)
    assert tuple(opened) == data.sets == ("blobs", "extras", "blobs")
