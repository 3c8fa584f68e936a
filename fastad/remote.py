"""Remote files: what an address may be, reading with retries, and one line for whatever goes wrong.

Owns the use of fsspec and its clients, which are imported only when an address is given; knows no shards. Their own
settings apply, such as AWS_ENDPOINT_URL, HF_ENDPOINT, proxies, or fsspec's FSSPEC_S3_… and ~/.config/fsspec.
Use: `data = b"".join(connect("s3://bucket/shards/digits").chunks("manifest.json"))`.
"""

import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any, TypeVar

from fastad.errors import FastadError, unknown
from fastad.progress import say

CHUNK_BYTES = 8 * 2**20
CONNECT_S, SILENCE_S = 10, 60

# Scheme → where its credentials are looked for.
CREDENTIALS = {
    "s3": "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; FSSPEC_S3_ANON=true for a public bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS; FSSPEC_GS_TOKEN=anon for a public bucket",
    "hf": "HF_TOKEN",
    "http": "~/.netrc",
    "https": "~/.netrc",
}

Found = TypeVar("Found")


class Damaged(Exception):
    """What arrived is not what was to arrive."""


def is_url(place: str) -> bool:
    """Whether a place is an address rather than a folder."""
    return "://" in place


def checked(url: str) -> str:
    """The address of a folder, without a slash at its end; raises `FastadError` if it cannot be one."""
    if not is_url(url):
        raise FastadError(
            f"{url} is no address: give one such as s3://bucket/shards/digits, or use the folder as it is"
        )
    scheme, _, place = url.partition("://")
    if scheme not in CREDENTIALS:
        raise unknown("kind of address", f"{scheme}://", [f"{name}://" for name in CREDENTIALS])
    parts = place.rstrip("/").split("/")
    if scheme.startswith("http") and (re.search("[?#]", place) or "@" in parts[0]):
        raise FastadError(
            f"an address at {parts[0].rpartition('@')[2]} holds a password, ? or #: give the plain address of a "
            f"folder; credentials are read from {CREDENTIALS[scheme]}"
        )
    if len(parts) < 2 or {"", ".", ".."} & set(parts):
        raise FastadError(
            f"{url} is not the address of a shard set: give one such as {scheme}://{parts[0] or 'bucket'}/shards/digits"
        )
    return f"{scheme}://{'/'.join(parts)}"


@dataclass(frozen=True, eq=False)
class Remote:
    """A folder of remote files: `root` is what its file system calls the folder at `url`."""

    url: str
    filesystem: Any
    root: str

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of a file, a piece at a time; raises whatever the file system's client raises."""
        if self.url.startswith("http"):
            # One request for a whole file: any server can do that, with ranges or not. A size, though it is not the
            # true one, saves fsspec's asking for it, in which it takes every error for a missing file.
            options: dict[str, Any] = {"block_size": 0, "size": 1}
        else:
            options = {"block_size": CHUNK_BYTES, "cache_type": "none"}
        with self.filesystem.open(f"{self.root}/{name}", "rb", **options) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk


def connect(url: str) -> Remote:
    """The folder at a checked address; raises `FastadError` where the packages that it needs are not installed."""
    scheme = url.partition("://")[0]
    # An instance of its own: fsspec would otherwise reuse one made for other credentials or another endpoint.
    options: dict[str, Any] = {"skip_instance_cache": True}
    try:
        import fsspec

        settings = fsspec.config.conf.get(scheme, {})
        if scheme.startswith("http"):
            import aiohttp

            # By default, a file that takes more than five minutes is given up.
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
            ours = {"trust_env": True, "timeout": timeout}
            options["client_kwargs"] = ours | settings.get("client_kwargs", {})
        elif scheme == "s3":
            ours = {"retries": {"total_max_attempts": 1}}
            options["config_kwargs"] = ours | settings.get("config_kwargs", {})
        elif scheme == "gs":
            # It would ask by gRPC, for a minute, which kind of bucket this is; and print tracebacks of what it raises.
            os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
            logging.getLogger("gcsfs").addHandler(logging.NullHandler())
        return Remote(url, *fsspec.core.url_to_fs(url, **options))
    except ImportError as error:
        raise FastadError(
            f"{url} needs packages that are not installed ({in_one_line(error)}): pip install 'fastad[remote]'"
        ) from error
    except Exception as error:  # each client has its own
        raise _explained(url, error) from error


def with_retries(url: str, read: Callable[[], Found], pauses_s: Sequence[float], stopped: threading.Event) -> Found:
    """What `read()` returns; tried again after each pause where its error may pass, else told as a `FastadError`."""
    for pause_s in (*pauses_s, None):
        try:
            return read()
        except (FastadError, CancelledError):
            raise
        except Exception as error:  # each client has its own, and they share no base
            if pause_s is None or _is_final(url, error):
                raise _explained(url, error) from error
            say(f"{url}: {in_one_line(error)}; trying again in {pause_s:g} s")
        stopped.wait(pause_s)
    raise AssertionError  # the last try returns or raises


def _is_final(url: str, error: Exception) -> bool:
    """Whether trying again is of no use."""
    if isinstance(error, Damaged):
        return False
    status = _status(error)
    refused = 400 <= status < 500 and status not in (408, 429)
    repeated = url.startswith("gs://")  # gcsfs has tried six times
    return isinstance(error, (FileNotFoundError, ValueError)) or _is_refusal(error) or refused or repeated


def _is_refusal(error: Exception) -> bool:
    without = type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")
    forbidden = str(error).startswith("Forbidden:")  # gcsfs
    return isinstance(error, PermissionError) or without or forbidden or _status(error) in (401, 403)


def _status(error: Exception) -> int:
    """The HTTP status that an error of aiohttp, gcsfs or huggingface_hub is about, 0 if none."""
    response = getattr(error, "response", None)
    for holder, name in ((error, "status"), (response, "status_code"), (error, "code")):
        if isinstance(found := getattr(holder, name, None), int):
            return found
    return 0


def _explained(url: str, error: Exception) -> FastadError:
    if isinstance(error, Damaged):
        return FastadError(f"{url} is damaged: {error}; upload the set again")
    if isinstance(error, FileNotFoundError):
        return FastadError(f"{url} is missing ({in_one_line(error)}): check the address, or upload the set again")
    if _is_refusal(error):
        where = CREDENTIALS[url.partition("://")[0]]
        return FastadError(f"{url} may not be read ({in_one_line(error)}): check the credentials ({where})")
    return FastadError(f"{url} cannot be read ({in_one_line(error)}): check the address and the network, and try again")


def in_one_line(error: BaseException) -> str:
    """The error's type and words, without line breaks."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
