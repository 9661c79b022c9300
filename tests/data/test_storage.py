"""reid/data/storage.py: local folders, and URLs through a real server and a stand-in for `aws`."""

import http.server
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from reid.data import storage
from reid.data.manifest import load_manifest
from reid.data.shard_reader import DamagedData, read_identities
from reid.data.storage import file_version, full_path, is_remote, open_file, read_file
from tests.support.loading import assert_same, make_loader


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@contextmanager
def serve(folder: Path, handler: type[Quiet] = Quiet) -> Iterator[str]:
    """The URL of a folder."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))  # seconds that its shutdown takes
        thread.start()
        try:
            yield f"http://127.0.0.1:{httpd.server_port}"
        finally:
            httpd.shutdown()
            thread.join()


@pytest.fixture
def server(drawn):
    """The URL of the drawn shards."""
    with serve(drawn.root) as url:
        yield url


def identities_of(root) -> list:
    """Without the places of their shards."""
    split = load_manifest(root).split("train")
    identities = list(read_identities(root, split, range(len(split.shards))))
    places = [full_path(root, split.shards[split.shard[each.row]].name) for each in identities]
    assert [each.shard for each in identities] == places
    return [replace(each, shard="") for each in identities]


def test_http_gives_what_the_folder_gives(drawn, server):
    assert load_manifest(server).fingerprint == drawn.manifest.fingerprint
    assert identities_of(server + "/") == identities_of(drawn.root)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_over_http_gives_the_batches_of_the_folder(drawn, server, workers):
    wanted = list(make_loader(drawn.root, drawn.manifest).batches(2))
    assert_same(list(make_loader(server, load_manifest(server), workers=workers).batches(2)), wanted)


@pytest.mark.parametrize("sent", [None, 0, 1], ids=["no answer", "no byte", "a part"])
def test_a_server_that_stalls_is_an_error_and_no_hang(drawn, monkeypatch, sent):
    over = threading.Event()

    class Stalling(Quiet):
        def do_GET(self) -> None:
            if sent is not None:
                self.send_response(200)
                self.send_header("Content-Length", "100000")
                self.end_headers()
                self.wfile.write(bytes(sent))
            over.wait()

    monkeypatch.setattr(storage, "STALL_S", 1)
    monkeypatch.setattr(storage, "PAUSES_S", ())
    with serve(drawn.root, Stalling) as url:
        try:  # 28: curl itself gave up
            with pytest.raises(OSError, match=rf"could not fetch {url}/train-0000\.tar \(exit status 28: .*too slow"):
                read_file(url, "train-0000.tar")
        finally:
            over.set()


@pytest.mark.parametrize("fault", ["busy", "torn"])
def test_a_failed_fetch_is_tried_again(drawn, monkeypatch, fault):
    class Failing(Quiet):
        asked = 0

        def do_GET(self) -> None:
            Failing.asked += 1
            if Failing.asked > 2:
                return super().do_GET()
            if fault == "busy":
                return self.send_error(503)
            self.send_response(200)
            self.send_header("Content-Length", "2000000")
            self.end_headers()
            self.wfile.write(b"x" * 1_000_000)  # more than the file, so that a rest of it would show

    monkeypatch.setattr(storage, "PAUSES_S", (0, 0))
    with serve(drawn.root, Failing) as url:
        assert read_file(url, "train-0000.tar") == (drawn.root / "train-0000.tar").read_bytes()
    assert Failing.asked == 3


def test_a_fetch_is_given_up_and_what_is_not_there_is_asked_for_once(drawn, monkeypatch):
    asked = []

    class Refusing(Quiet):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404 if "nowhere" in self.path else 503)

    monkeypatch.setattr(storage, "PAUSES_S", (0, 0))
    with serve(drawn.root, Refusing) as url:
        for name in ("busy", "nowhere"):
            with pytest.raises(OSError, match=f"could not fetch {url}/{name} .*error: [45]0[34]"):
                read_file(url, name)
    assert asked == ["/busy"] * 3 + ["/nowhere"]


def test_a_reader_holds_no_connection(tmp_path):
    """However long it pauses, no server gives it up: the rest of a file is there when its server is gone."""
    connections = []

    class Counted(Quiet):
        def setup(self) -> None:
            super().setup()
            connections.append(self.connection)

    data = os.urandom(1 << 20) * 30  # more than the buffers of sockets and pipes hold
    (tmp_path / "large.tar").write_bytes(data)
    with ExitStack() as opened:
        with serve(tmp_path, Counted) as url:
            file = opened.enter_context(open_file(url, "large.tar"))
            first = file.read(1000)
        (connection,) = connections
        with suppress(OSError):  # closed before
            connection.shutdown(socket.SHUT_RDWR)
        assert first + file.read() == data


@pytest.mark.parametrize("root", ["http://127.0.0.1:9/x", "s3://bucket/x", "gs://bucket/x"])
def test_a_fetch_leaves_no_file(root, tmp_path, monkeypatch):
    """Whether it succeeds or fails; the tools stand for themselves here."""
    tools, temporary = tmp_path / "tools", tmp_path / "temporary"
    temporary.mkdir()
    tools.mkdir()
    for name in ("curl", "aws", "gsutil"):
        (tools / name).write_text("#!/bin/sh\nprintf 'a file'\nprintf 'one\\nno luck\\n' >&2\nexit $STATUS\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr(storage, "PAUSES_S", (0,))
    monkeypatch.setenv("STATUS", "0")
    with open_file(root, "f") as file:
        assert file.read() == b"a file" and not list(temporary.iterdir())
    monkeypatch.setenv("STATUS", "3")
    with pytest.raises(OSError, match=rf"could not fetch {root}/f \(exit status 3: no luck\)"):
        read_file(root, "f")
    assert not list(temporary.iterdir())


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
    assert full_path(tmp_path, "x") == str(tmp_path.resolve() / "x")
    assert read_file(str(tmp_path), "x") == b"12"
    before = file_version(tmp_path, "x")
    (tmp_path / "y").write_bytes(b"34")
    Path(tmp_path / "y").replace(tmp_path / "x")
    assert file_version(tmp_path, "x") != before
    assert file_version("https://host/x", "x") is None
