"""Finding, verifying and downloading the files of named sets."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import threading
from pathlib import Path

import pytest

from toolkit import registry
from toolkit.data import cache
from toolkit.data.cards import Card, File, card
from toolkit.errors import DataNotFoundError, InputError

CONTENT = b"date,OT\n2020-01-01,1\n"


@pytest.fixture
def folders(tmp_path, monkeypatch) -> Path:
    """An empty user folder ``user`` and cache ``cache``."""
    (tmp_path / "user").mkdir()
    monkeypatch.setenv("TOOLKIT_DATA", str(tmp_path / "user"))
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    for name in ("TOOLKIT_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def make_card(url: str | None = None, sha256: tuple[str, ...] = (hashlib.sha256(CONTENT).hexdigest(),)) -> Card:
    real = card("etth1")
    return real.model_copy(update={"files": {"ETTh1.csv": File(sha256=sha256, bytes=len(CONTENT), url=url)}})


def put(path: Path, content: bytes = CONTENT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def server():
    """A web server of one file; counts the requests."""

    class Handler(http.server.BaseHTTPRequestHandler):
        requests = 0

        def do_GET(self):
            Handler.requests += 1
            found = self.path == "/ETTh1.csv"
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(CONTENT if found else b"")

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", Handler
        running.shutdown()


def test_search_order(folders):
    set_ = make_card()
    places = [
        put(folders / "cache" / "data" / "ett" / "ETTh1.csv"),
        put(folders / "user" / "ETT-small" / "ETTh1.csv"),
        put(folders / "user" / "ett" / "ETTh1.csv.gz", gzip.compress(CONTENT)),
        put(folders / "user" / "ett" / "ETTh1.csv"),
    ]
    for expected in reversed(places):
        assert cache.find(set_) == expected
        expected.unlink()
    with pytest.raises(DataNotFoundError):
        cache.find(set_)


def test_path_given_by_hand_is_not_hashed(folders):
    other = put(folders / "other.csv", b"anything")
    assert cache.find(make_card(), path=other) == other
    with pytest.raises(InputError, match=r"absent.csv does not exist"):
        cache.find(make_card(), path=folders / "absent.csv")


def test_another_checksum_is_refused(folders):
    path = put(folders / "user" / "ett" / "ETTh1.csv", b"changed")
    with pytest.raises(DataNotFoundError) as caught:
        cache.find(make_card())
    message = str(caught.value)
    for word in (str(path), hashlib.sha256(b"changed").hexdigest(), hashlib.sha256(CONTENT).hexdigest(), "data.path="):
        assert word in message
    put(path, CONTENT)  # the remembered hash is not that of the new file
    assert cache.find(make_card()) == path
    several = (hashlib.sha256(b"edition 1").hexdigest(), hashlib.sha256(CONTENT).hexdigest())
    assert cache.find(make_card(sha256=several)) == path


def test_a_cut_archive_is_refused(folders):
    put(folders / "user" / "ett" / "ETTh1.csv.gz", gzip.compress(CONTENT)[:-6])
    with pytest.raises(DataNotFoundError, match="not a complete gzip file"):
        cache.find(make_card())


def test_unknown_checksums_are_said(folders, caplog):
    put(folders / "user" / "ett" / "ETTh1.csv")
    with caplog.at_level("INFO", logger="toolkit"):
        cache.find(make_card(sha256=()))
    assert "unchecked" in caplog.text


def test_a_file_is_hashed_once(folders, monkeypatch):
    put(folders / "user" / "ett" / "ETTh1.csv")
    cache.find(make_card())
    monkeypatch.setattr(cache, "read_chunks", lambda path: pytest.fail("hashed again"))
    cache.find(make_card())


def test_not_found_says_where_and_how(folders, monkeypatch):
    with pytest.raises(DataNotFoundError, match="toolkit data get etth1") as caught:
        cache.find(card("etth1"))
    for folder in (folders / "user" / "ett", folders / "user" / "ETT-small", folders / "cache" / "data" / "ett"):
        assert str(folder) in str(caught.value)
    monkeypatch.delenv("TOOLKIT_DATA")
    with pytest.raises(DataNotFoundError, match=r"\$TOOLKIT_DATA \(not set\)"):
        cache.find(card("etth1"))
    with pytest.raises(DataNotFoundError, match=r"Time-Series-Library.*\$TOOLKIT_DATA/traffic/traffic.csv"):
        cache.find(card("traffic"), download=True)


def test_download(folders, server):
    url, handler = server
    set_ = make_card(f"{url}/ETTh1.csv")
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(cache.find(set_, download=True))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [folders / "cache" / "data" / "ett" / "ETTh1.csv"] * 4
    assert found[0].read_bytes() == CONTENT
    assert handler.requests == 1
    assert not list((folders / "user").iterdir())


def test_failed_downloads(folders, server, monkeypatch):
    url, handler = server
    target = folders / "cache" / "data" / "ett" / "ETTh1.csv"
    with pytest.raises(DataNotFoundError, match="does not hold the expected file"):
        cache.find(make_card(f"{url}/ETTh1.csv", sha256=("0" * 64,)), download=True)
    with pytest.raises(DataNotFoundError, match="404"):
        cache.find(make_card(f"{url}/other.csv"), download=True)
    with pytest.raises(DataNotFoundError, match=r"download of .* failed"):
        cache.find(make_card("http://127.0.0.1:9/ETTh1.csv"), download=True)
    assert not target.exists()
    count = handler.requests
    for name in ("TOOLKIT_OFFLINE", "HF_HUB_OFFLINE"):
        with monkeypatch.context() as offline:
            offline.setenv(name, "1")
            with pytest.raises(DataNotFoundError, match=r"TOOLKIT_OFFLINE.*TOOLKIT_DATA/ett/ETTh1.csv"):
                cache.find(make_card(f"{url}/ETTh1.csv"), download=True)
    assert handler.requests == count
    put(folders / "file")
    monkeypatch.setenv("TOOLKIT_CACHE", str(folders / "file"))
    with pytest.raises(InputError, match=r"cannot write to .*TOOLKIT_CACHE"):
        cache.find(make_card(f"{url}/ETTh1.csv"), download=True)


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("TOOLKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_dir() == tmp_path / "toolkit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_dir() == Path.home() / ".cache" / "toolkit"


def test_every_card_is_valid():
    for name in registry.datasets.names():
        set_ = card(name.upper())
        assert set_.name == name
        assert set_.embedded or set_.obtain or all(file.url for file in set_.files.values())


def test_embedded_sets_come_with_the_package():
    assert cache.find(card("beijing_pm25")).parent == card("beijing_pm25").package
