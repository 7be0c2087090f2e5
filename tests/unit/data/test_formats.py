"""Reading each format: rows, their lines, and what is said of broken files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from lmkit.data.formats import BadRow, read_rows
from lmkit.errors import DataError


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, content: str | bytes) -> Path:
    path = Path(name)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def failure(path: Path, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        list(read_rows(path, **options))
    assert caught.value.remedy
    return caught.value


def test_text_is_read_by_line_paragraph_or_file() -> None:
    path = write("a.txt", "\ufeff天地\u2028玄黄\r\n\r\n  \n宇宙\x85洪荒\n日月")
    assert list(read_rows(path)) == [
        (1, {"text": "天地\u2028玄黄"}),
        (4, {"text": "宇宙\x85洪荒"}),
        (5, {"text": "日月"}),
    ]
    assert list(read_rows(path, document="paragraph")) == [
        (1, {"text": "天地\u2028玄黄"}),
        (4, {"text": "宇宙\x85洪荒\n日月"}),
    ]
    assert list(read_rows(path, document="file")) == [
        (1, {"text": "天地\u2028玄黄\n\n  \n宇宙\x85洪荒\n日月"})
    ]
    for document in ("line", "paragraph", "file"):
        assert not list(read_rows(write("blank.txt", "\n \n"), document=document))


def test_jsonl_keeps_lines_and_compressed_files_read_alike() -> None:
    content = '{"text": "a"}\n\n{"text": "天", "n": NaN}\r\n'.encode()
    pa.output_stream("a.jsonl.zst", compression="zstd").write(content)
    for path in (
        write("a.jsonl", content),
        write("a.jsonl.gz", gzip.compress(content, mtime=0)),
        Path("a.jsonl.zst"),
    ):
        rows = list(read_rows(path))
        assert [(n, row["text"]) for n, row in rows] == [(1, "a"), (3, "天")]


def test_json_lists_have_the_lines_of_their_objects() -> None:
    listed = '[\n {"text": "a"},\n {"text":\n "b"}\n]'
    assert list(read_rows(write("a.json", listed))) == [(2, {"text": "a"}), (3, {"text": "b"})]
    wrapped = '{"version": [1],\n "data":\n' + listed + "}"
    assert [number for number, _ in read_rows(write("b.json", wrapped))] == [4, 5]


def test_csv_cells_may_span_lines_and_tsv_knows_no_quotes() -> None:
    path = write("a.csv", 'text,label\r\n"one, ""two""\r\nthree",x\r\n\r\n四,y\r\n')
    assert list(read_rows(path)) == [
        (2, {"text": 'one, "two"\nthree', "label": "x"}),
        (5, {"text": "四", "label": "y"}),
    ]
    path = write("a.tsv", 'text\tlabel\n"quoted\tx\n')
    assert list(read_rows(path)) == [(2, {"text": '"quoted', "label": "x"})]


def test_tables_without_a_header_are_read_by_position() -> None:
    assert list(read_rows(write("a.tsv", "a\tb\nc\td\n"), header=False)) == [
        (1, {"0": "a", "1": "b"}),
        (2, {"0": "c", "1": "d"}),
    ]
    assert list(read_rows(write("a.csv", "0,1\na,b\n"), header=False)) == [
        (2, {"0": "a", "1": "b"})
    ]


def test_parquet_and_arrow_are_read_with_the_names_of_their_classes() -> None:
    features = {
        "label": {"names": ["neg", "pos"], "_type": "ClassLabel"},
        "tags": {"feature": {"names": ["O", "B-X"], "_type": "ClassLabel"}, "_type": "List"},
    }
    table = pa.table({"text": ["a", "b"], "label": [1, -1], "tags": [[0, 1], []]})
    table = table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    pq.write_table(table, "a.parquet")
    feather.write_feather(table, "a.feather")
    with pa.OSFile("a.arrow", "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    write("b.parquet.gz", gzip.compress(Path("a.parquet").read_bytes()))
    for name in ("a.parquet", "a.feather", "a.arrow", "b.parquet.gz"):
        assert list(read_rows(Path(name))) == [
            (1, {"text": "a", "label": "pos", "tags": ["O", "B-X"]}),
            (2, {"text": "b", "label": None, "tags": []}),
        ]


def test_conll_tells_comments_from_words_and_keeps_lines() -> None:
    path = write(
        "a.conll",
        "# a comment here\n-DOCSTART- -X- O\n\nJohn NNP B-PER\r\n# X O\n \n# id = 1 2 3\n上\xa0海 X B-LOC\n",
    )
    (first, row), (second, other) = read_rows(path)
    assert (first, row["tokens"], row["tags"], row["1"], row["_lines"]) == (
        4,
        ["John", "#"],
        ["B-PER", "O"],
        ["NNP", "X"],
        [4, 5],
    )
    assert (second, other["tokens"]) == (8, ["上\xa0海"])
    tabs = write("b.bio", "# id = 1\nNew York\tB-LOC\n#\tO\n")
    assert [row["tokens"] for _, row in read_rows(tabs)] == [["New York", "#"]]


@pytest.mark.parametrize("sign", ["\t", " ", "  "])
@pytest.mark.parametrize("between", [[], ["NNP"], ["NNP", "B-NP"]])
@pytest.mark.parametrize("tail", ["", " "])
def test_conll_has_two_to_four_columns_the_tag_last(
    sign: str, between: list[str], tail: str
) -> None:
    lines = [
        sign.join([word, *between, tag]) + tail
        for word, tag in (("Ada", "B-PER"), ("Byron", "I-PER"), (".", "O"))
    ]
    docstart = sign.join(["-DOCSTART-", *(["-X-"] * len(between)), "O"])
    path = write(
        "a.conll",
        "\n".join(["# id = 1 of 2 or 3", docstart, "", *lines[:2], "", "", *lines[2:], ""]),
    )
    read = [(number, row["tokens"], row["tags"]) for number, row in read_rows(path)]
    assert read == [(4, ["Ada", "Byron"], ["B-PER", "I-PER"]), (8, ["."], ["O"])]


def test_conllu_gives_forms_and_universal_tags() -> None:
    def line(*cells: str) -> str:
        return "\t".join([*cells, *"_" * (10 - len(cells))]) + "\n"

    path = write(
        "a.conllu",
        "# text = du\n"
        + line("1-2", "du")
        + line("1", "de", "de", "ADP")
        + line("2", "le", "le", "DET")
        + line("2.1", "x")
        + "\n",
    )
    ((number, row),) = read_rows(path)
    assert (number, row["tokens"], row["tags"], row["_lines"]) == (
        3,
        ["de", "le"],
        ["ADP", "DET"],
        [3, 4],
    )


@pytest.mark.parametrize(
    ("name", "content", "place", "problem"),
    [
        ("a.jsonl", '{"a": 1}\n{"a" 1}\n', ":2", "not JSON at column 6: Expecting ':' delimiter"),
        ("a.jsonl", '[{"a": 1}]\n', ":1", 'not a JSON object but [{"a": 1}]'),
        ("a.json", '[{"a": 1},\n {"a": }]', ":2", "not JSON at column 8"),
        ("a.json", '[{"a": 1},', ":1", "not JSON at column 11"),
        ("a.json", "[\n3]", ":2", "not a JSON object but 3"),
        (
            "a.json",
            '{"a": 1}\n{"a": 2}\n',
            "",
            'neither a list of objects nor an object with a list under "data"',
        ),
        ("a.json", "", "", "neither a list"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", ":3", "3 cells where the first line has 2"),
        ("a.csv", 'a,b\n1,2\n"1,2\n3,4\n', ":3", "a quoted cell that begins here never ends"),
        ("a.csv", 'a,b\n"x" y,2\n', ":2", "not CSV"),
        ("a.tsv", "a\tb\n1\n", ":2", "1 cell where the first line has 2"),
        ("a.csv", "a,a\n1,2\n", ":1", "two columns are called 'a'"),
        ("a.conll", "a O\nb\nc O\n\n", ":2", "a single column, 'b', where 2 are expected"),
        ("a.conll", "a\nb\n", ":1", "a single column, 'a', where a word and its tag are expected"),
        ("a.conll", "a O\nb c O\n", ":2", "3 columns where 2 are expected"),
        ("a.txt", b"ok\nna\xefve\n", ":2", "not UTF-8: byte 0xef at byte 3 of the line"),
        ("a.txt", "hello".encode("utf-16"), ":1", "the file begins with UTF-16 text"),
        ("a.txt", "hello".encode("utf-16-be"), ":1", "the file begins with NUL bytes"),
        ("a.txt", gzip.compress(b"x", mtime=0), ":1", "its name should end in .gz"),
        ("a.txt.gz", b"no gzip", "", "cannot be read: Not a gzipped file"),
        (
            "a.txt.gz",
            gzip.compress(b"x" * 999, mtime=0)[:-9],
            "",
            "cannot be read: Compressed file ended",
        ),
        ("a.txt.zst", b"no zstd", "", "cannot be read: ZSTD decompress failed"),
        ("a.parquet", b"PAR1 broken", "", "broken, or not parquet data"),
        ("a.arrow", b"ARROW1\0\0 broken", "", "broken, or not arrow data"),
    ],
)
def test_broken_files_are_said_with_place_and_remedy(
    name: str, content: str | bytes, place: str, problem: str
) -> None:
    error = failure(write(name, content))
    assert problem in error.problem
    assert error.place == name + place


def test_a_truncated_zst_file_is_noticed() -> None:
    with pa.output_stream("whole.zst", compression="zstd") as file:
        file.write(bytes(range(65, 90)) * 50_000)
    path = write("a.txt.zst", Path("whole.zst").read_bytes()[:-20])
    assert "Truncated" in failure(path).problem


def test_unreadable_rows_can_be_collected_instead() -> None:
    bad: list[BadRow] = []
    rows = list(read_rows(write("a.jsonl", '{"a": 1}\n{"a"\n{"a": 3}\n'), bad=bad.append))
    assert [number for number, _ in rows] == [1, 3]
    assert [(row.line, row.row) for row in bad] == [(2, '{"a"')]
    assert "data.on_bad_row=skip" in str(bad[0])
