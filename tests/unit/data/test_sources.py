"""Finding files: paths, globs, directories, samples and hub ids; and what is said where nothing is found."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from lmkit.data import sources
from lmkit.data.hub import HubId, download
from lmkit.data.sources import find_files
from lmkit.errors import DataError


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))


def write(name: str, content: str | bytes) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def find(source: str | list[str]) -> list[str] | HubId:
    """Paths as from the current folder."""
    found = find_files(source, key="data.train")
    if isinstance(found, HubId):
        return found
    assert all(path.is_absolute() for path in found)
    return [str(path.relative_to(Path.cwd())) for path in found]


def test_paths_lists_globs_and_directories_are_found() -> None:
    for name in (
        "a.txt",
        "b.jsonl.gz",
        "sub/c.csv",
        "sub/.hidden.csv",
        ".git/d.txt",
        "sub/notes.md",
    ):
        write(name, "x")
    assert find("a.txt") == ["a.txt"]
    assert find(["b.jsonl.gz", "a.txt"]) == ["b.jsonl.gz", "a.txt"]
    assert find("sub") == ["sub/c.csv"]
    assert find(".") == ["a.txt", "b.jsonl.gz", "sub/c.csv"]
    assert find("*.txt") == ["a.txt"]
    assert find("**/*.csv") == ["sub/c.csv"]
    assert find(str(Path("a.txt").absolute())) == ["a.txt"]


def test_samples_come_from_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sources, "SAMPLES", tmp_path / "samples")
    write("samples/tiny/train.txt", "x")
    assert find("sample:tiny/train.txt") == ["samples/tiny/train.txt"]
    with pytest.raises(
        DataError, match=r"no such file: sample:tiny/tran.txt; did you mean train.txt"
    ):
        find("sample:tiny/tran.txt")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("trian.jsonl", "no such file: trian.jsonl; did you mean train.jsonl?"),
        ("sub/trian.jsonl", "no such file: sub/trian.jsonl; did you mean sub/train.jsonl?"),
        ("./trian", "no such file: ./trian"),
        ("sub/trian", "no such file: sub/trian"),
        ("table.xlsx", "not a format that lmkit reads: table.xlsx"),
        ("missing.xlsx", "no such file: missing.xlsx"),
        ("*.csv", r"no file matches *.csv"),
        ("*.xlsx", "no data file among what *.xlsx matches"),
        ("empty", "no data file in the directory empty"),
        ("saved", "saved holds several splits: test, train"),
        ([], "an empty list"),
        ("", "an empty path"),
        (["train.jsonl", "org/name"], "no such file: org/name"),
    ],
)
def test_what_is_not_found_is_said_with_key_and_remedy(
    source: str | list[str], message: str
) -> None:
    for name in (
        "train.jsonl",
        "sub/train.jsonl",
        "table.xlsx",
        "empty/notes.md",
        "saved/dataset_dict.json",
    ):
        write(name, "{}")
    write("saved/train/data.arrow", ""), write("saved/test/data.arrow", "")
    with pytest.raises(DataError) as caught:
        find(source)
    assert message in caught.value.problem
    assert caught.value.place == "data.train"
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("source", "hub"),
    [
        ("imdb", HubId("imdb")),
        ("org/name:config@v1.0", HubId("org/name", "config", "v1.0")),
        ("hf://datasets/org/name", HubId("org/name")),
    ],
)
def test_hub_ids_are_recognised(source: str, hub: HubId) -> None:
    assert find(source) == hub


def test_offline_a_hub_id_is_not_found_unless_cached(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        DataError,
        match=r"nothing is found locally under 'imdb', and the hub is switched off \(HF_HUB",
    ):
        find("imdb")
    (tmp_path / "hf-home/hub/datasets--imdb").mkdir(parents=True)
    assert find("imdb") == HubId("imdb")


def test_the_hub_gives_files_or_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, config: str | None, **_: Any) -> Any:
        if name == "imdb":
            return types.SimpleNamespace(cache_files=[{"filename": "/cache/imdb-train.arrow"}])
        raise ConnectionError("no route\nto host")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert download(HubId("imdb"), split="train", key="data.train") == [
        Path("/cache/imdb-train.arrow")
    ]
    with pytest.raises(
        DataError,
        match=r"data.train: org/no cannot be loaded from the hub: no route to host\n.*offline",
    ):
        download(HubId("org/no"), split="train", key="data.train")
