"""Lines end at newlines and nowhere else, whatever stands inside a JSON string or before the first line."""

from __future__ import annotations

import io
import json

import pytest

from unite_ext._jsonl import read_lines, read_records, record_line, split_lines, takes_unicode

SEPARATORS = "\u2028\u2029\u0085\v\f\x1c\x1d\x1e"  # where str.splitlines cuts as well


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_what_is_written_is_read(tmp_path, end, mark):
    records = [{"text": f"a{c}b"} for c in SEPARATORS] + ["\r", "", 5, None, "😀"]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(mark + "".join(map(record_line, records)).replace("\n", end).encode())
    assert [record for _, record in read_records(path)] == records


def test_lines_of_text(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffone\u2028still one\r\n\r\n  \ntwo\rstill two\nthree".encode())
    assert read_lines(path) == [(1, "one\u2028still one"), (4, "two\rstill two"), (5, "three")]
    assert split_lines("") == []
    assert split_lines(b"\n") == [""]


def test_errors_name_the_place(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{}\n\n{"a": \n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 3: must be JSON, got '\{\"a\": '$"):
        list(read_records(path))
    path.write_bytes(b"ab\xff\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl: must be UTF-8, got byte 0xff at byte 2$"):
        read_lines(path)


def test_a_stream_that_is_not_utf8_gets_escapes():
    for encoding, whole in (("utf-8", True), ("UTF-8", True), ("ascii", False), ("cp1252", False), ("latin-1", False)):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        assert takes_unicode(stream) == whole
        stream.write(record_line({"text": "中 é 😀"}, ascii_only=not whole))
        stream.flush()
        assert json.loads(stream.buffer.getvalue().decode(encoding)) == {"text": "中 é 😀"}
