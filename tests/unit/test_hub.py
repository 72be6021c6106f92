"""Data sets of Hugging Face: from a folder, and from a hub that this file plays."""

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qprobe.data.columns import Columns
from qprobe.data.prompts import read_prompts
from qprobe.errors import PromptFileError
from qprobe_server.commands.prompt_source import source

SHA = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "some-org/questions"
READ = """
import json, sys
from qprobe.data.columns import Columns
from qprobe.data.prompts import read_prompts
from qprobe.errors import PromptFileError
columns = Columns({"prompt": "query", "answer": "final"}, **json.loads(sys.argv[2]))
try:
    print(json.dumps([row.fields for row in read_prompts(sys.argv[1], columns=columns)]))
except PromptFileError as error:
    sys.exit(str(error))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a repository of a data set with three splits."""
    folder = tmp_path / "questions"
    (folder / "data").mkdir(parents=True)
    for split in ("train", "validation", "test"):
        rows = {"query": [f"{split} {each}" for each in range(2)], "final": [1.5, None]}
        pq.write_table(pa.table(rows), folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


class Handler(BaseHTTPRequestHandler):
    """Answers as a hub with one repository."""

    folder: Path

    def log_message(self, *_: object) -> None:
        """Keep the tests' output clean."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        body = self.rfile.read(length).decode()
        paths = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        self.reply_json([entry for entry in entries(self.folder) if entry["path"] in paths])

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        api, files = f"/api/datasets/{REPOSITORY}", f"/datasets/{REPOSITORY}/resolve/"
        if path.startswith(f"{api}/tree/"):
            under = path.removeprefix(f"{api}/tree/").partition("/")[2]
            self.reply_json(
                [each for each in entries(self.folder) if each["path"].startswith(under)]
            )
        elif path == api or path.startswith(f"{api}/revision/"):
            names = [{"rfilename": each["path"]} for each in entries(self.folder)]
            self.reply_json({"id": REPOSITORY, "sha": SHA, "siblings": names, "tags": []})
        elif path.startswith(files):
            self.reply_file(self.folder / path.removeprefix(files).partition("/")[2])
        else:
            self.send_error(404)

    def reply_json(self, content: Any) -> None:
        self.reply(json.dumps(content).encode(), {"content-type": "application/json"})

    def reply_file(self, path: Path) -> None:
        if not path.is_file():
            self.send_response(404)
            self.send_header("x-error-code", "EntryNotFound")
            self.send_header("x-repo-commit", SHA)
            self.send_header("content-length", "0")
            self.end_headers()
            return
        data = path.read_bytes()
        digest = hashlib.sha1(data, usedforsecurity=False).hexdigest()
        self.reply(data, {"etag": f'"{digest}"', "x-repo-commit": SHA})

    def reply(self, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "content-length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@pytest.fixture
def hub(folder: Path) -> Iterator[str]:
    """Serve the repository as the hub does, and return the address."""
    handler = type("HandlerOfFolder", (Handler,), {"folder": folder})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def entries(folder: Path) -> list[dict[str, Any]]:
    return [
        {
            "type": "file" if path.is_file() else "directory",
            "path": path.relative_to(folder).as_posix(),
            "oid": hashlib.sha1(path.name.encode(), usedforsecurity=False).hexdigest(),
            "size": path.stat().st_size if path.is_file() else 0,
        }
        for path in sorted(folder.rglob("*"))
    ]


def read(hub: str, home: Path, address: str, **columns: Any) -> subprocess.CompletedProcess[str]:
    """Read a data set in a process of its own: the hub's address is read once."""
    environment = {
        "HF_ENDPOINT": hub, "HF_HOME": str(home), "PYTHONPATH": ":".join(sys.path), "PATH": "",
        "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", READ, address, json.dumps(columns)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_data_set_of_the_hub(hub: str, tmp_path: Path) -> None:
    address = f"hf://datasets/{REPOSITORY}"
    wanted = {"splits": ["train", "validation"], "test_splits": ["validation"]}
    done = read(hub, tmp_path / "home", address, **wanted)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        {"prompt": "train 0", "answer": 1.5, "split": "train"},
        {"prompt": "train 1", "answer": None, "split": "train"},
        {"prompt": "validation 0", "answer": 1.5, "split": "test"},
        {"prompt": "validation 1", "answer": None, "split": "test"},
    ]
    file = f"{address}@{SHA}/data/test-00000-of-00001.parquet"
    done = read(hub, tmp_path / "home", file)
    assert done.returncode == 0, done.stderr
    assert [row["prompt"] for row in json.loads(done.stdout)] == ["test 0", "test 1"]
    for wrong in (f"{address}/none.jsonl", f"{address}x"):
        done = read(hub, tmp_path / "home", wrong)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(f"{wrong}: file: cannot be read: ")


def test_a_data_set_in_a_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets_config = pytest.importorskip("datasets").config
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "cache")
    columns = Columns({"prompt": "query"}, test_splits=("validation", "test"))
    read = read_prompts(folder, columns=columns)
    assert [(row.prompt, row.fields["split"]) for row in read] == [
        (f"{split} {each}", "train" if split == "train" else "test")
        for split in ("train", "validation", "test")
        for each in range(2)
    ]
    with pytest.raises(PromptFileError, match="'dev' is not there, but train, validation, test"):
        read_prompts(folder, columns=Columns(splits=("dev",)))
    with pytest.raises(PromptFileError, match="3: split: must be 'train' or 'test'"):
        read_prompts(folder, columns=Columns({"prompt": "query"}))
    # One split alone, whatever its name, is both for training and for the test.
    for split in ("train", "validation"):
        read = read_prompts(folder, columns=Columns({"prompt": "query"}, splits=(split,)))
        assert [row.fields for row in read] == [
            {"prompt": f"{split} 0", "final": 1.5},
            {"prompt": f"{split} 1", "final": None},
        ]
    # Another column's splits are not the data set's.
    splits = {"splits": ("train 0", "test 1"), "test_splits": ("test 1",)}
    read = read_prompts(folder, columns=Columns({"prompt": "query"}, split="query", **splits))
    assert [(row.prompt, row.fields["split"]) for row in read] == [
        ("train 0", "train"),
        ("test 1", "test"),
    ]
    for name in ("validation", "test"):
        (folder / "data" / f"{name}-00000-of-00001.parquet").unlink()
    read = read_prompts(folder, columns=Columns({"prompt": "query"}))
    assert [row.fields for row in read] == [
        {"prompt": "train 0", "final": 1.5},
        {"prompt": "train 1", "final": None},
    ]
    # So it is if its only split is named; --test-splits may name it too.
    assert read == read_prompts(folder, columns=Columns({"prompt": "query"}, splits=("train",)))
    columns = Columns({"prompt": "query"}, test_splits=("train",))
    assert {row.fields["split"] for row in read_prompts(folder, columns=columns)} == {"test"}


def test_a_data_set_that_was_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"prompt": "a"}, {"prompt": "b"}])
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(str(tmp_path / "two"))
    for name, want in (("one", [None, None]), ("two", ["train", "train", "test", "test"])):
        assert source(str(tmp_path / name)) == tmp_path / name
        assert [row.fields.get("split") for row in read_prompts(tmp_path / name)] == want
        read = read_prompts(tmp_path / name, columns=Columns(splits=("train",)))
        assert [row.fields for row in read] == [{"prompt": "a"}, {"prompt": "b"}]
        with pytest.raises(PromptFileError, match="subset: is of a data set"):
            read_prompts(tmp_path / name, subset="main")


@pytest.mark.parametrize("address", ["", "name", "org/", "org/name@", "org//x"])
def test_addresses_that_are_none_are_refused(address: str) -> None:
    with pytest.raises(PromptFileError, match=r"must be hf://datasets/ORG/NAME"):
        read_prompts(f"hf://datasets/{address}")
