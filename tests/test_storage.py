"""reid/storage.py: local folders, and URLs through a real server and a stand-in for `aws`."""

import http.server
import os
import threading
from functools import partial
from pathlib import Path

import pytest

from reid.manifest import load_manifest
from reid.samples import DamagedData, read_identities
from reid.storage import is_remote, open_file, place_of, read_file, stamp_of

pytestmark = pytest.mark.timeout(60)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server(drawn):
    """The URL of the drawn shards."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(drawn.root))) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def identities_of(root) -> list:
    split = load_manifest(root).split("train")
    return list(read_identities(root, split, range(len(split.shards))))


def test_http_gives_what_the_folder_gives(drawn, server):
    assert load_manifest(server).fingerprint == drawn.manifest.fingerprint
    assert identities_of(server + "/") == identities_of(drawn.root)


def test_what_the_server_does_not_have_is_named(server):
    with pytest.raises(OSError, match=r"curl could not fetch http://127\.0\.0\.1:\d+/nothing\.tar"):
        read_file(server, "nothing.tar")
    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:\d+/nowhere/manifest\.json: curl could not fetch"):
        load_manifest(server + "/nowhere")


def test_a_missing_remote_shard_is_damage(drawn, server, tmp_path):
    split = drawn.manifest.split("train")
    with pytest.raises(DamagedData, match=r"/gone/train-0000\.tar: .*missing because curl could not fetch"):
        list(read_identities(server + "/gone", split, [0]))


def test_a_file_that_is_left_in_the_middle_is_no_error(server):
    with open_file(server, "train-0000.tar") as file:
        assert len(file.read(512)) == 512


def test_s3_goes_through_aws(drawn, tmp_path, monkeypatch):
    """The tool gets the URL as one argument; `cp URL -` writes the object to its output."""
    tool = tmp_path / "aws"
    tool.write_text(
        '#!/bin/sh\n[ "$1 $2 $3 $5" = "s3 cp --only-show-errors -" ] || exit 9\n'
        f'exec cat "{drawn.root}/${{4#s3://bucket/drawn/}}"\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert identities_of("s3://bucket/drawn") == identities_of(drawn.root)
    with pytest.raises(OSError, match="aws could not fetch s3://bucket/drawn/none"):
        read_file("s3://bucket/drawn", "none")


@pytest.mark.parametrize("root", ["pipe:cat x", "ftp://host/x", "file:///x", "javascript:1"])
def test_other_schemes_are_refused(root):
    with pytest.raises(ValueError, match="only local folders and http, https, gs, s3 URLs are read"):
        is_remote(root)


@pytest.mark.parametrize(
    "root", ["https://me:secret@host/x", "https://host/x?token=secret", "http://host/a b", "s3://b/'"]
)
def test_credentials_and_quotes_are_refused_and_not_repeated(root):
    with pytest.raises(ValueError, match="plain URL of a folder") as raised:
        is_remote(root)
    assert "secret" not in str(raised.value)


def test_a_missing_tool_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="'gsutil' fetches gs URLs and is not installed"):
        is_remote("gs://bucket/x")


def test_local_places(tmp_path):
    (tmp_path / "x").write_bytes(b"12")
    assert not is_remote(tmp_path) and not is_remote("C:/data")
    assert place_of(tmp_path, "x") == str(tmp_path.resolve() / "x")
    assert read_file(str(tmp_path), "x") == b"12"
    before = stamp_of(tmp_path, "x")
    (tmp_path / "y").write_bytes(b"34")
    Path(tmp_path / "y").replace(tmp_path / "x")
    assert stamp_of(tmp_path, "x") != before
    assert stamp_of("https://host/x", "x") is None
