"""Files as other programs write them, for tests/reading/files.rs and src/data/reading/tests.rs.

    python make_files.py files

Needs pyarrow 26.0.1, pandas, and the programs zstd and pzstd 1.5. Beside each group of files stands what
its writer reads back, as JSON.
"""

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pandas
import pyarrow as pa
import pyarrow.parquet as pq

out = Path(sys.argv[1])
out.mkdir(exist_ok=True)


def save(name, rows):
    text = json.dumps(rows, ensure_ascii=False, indent=0, allow_nan=False)
    (out / name).write_text(text + "\n", encoding="utf-8")


# --- Parquet ---------------------------------------------------------------------------------------

turn = pa.struct([("role", pa.string()), ("content", pa.large_string())])
part = pa.struct([("kind", pa.string()), ("lines", pa.list_(pa.string()))])
schema = pa.schema(
    [
        pa.field("n", pa.int64(), nullable=False),
        ("text", pa.string()),
        ("large", pa.large_string()),
        ("view", pa.string_view()),
        ("word", pa.dictionary(pa.int32(), pa.string())),
        ("score", pa.float64()),
        ("half", pa.float32()),
        ("small", pa.int8()),
        ("big", pa.uint64()),
        ("right", pa.list_(pa.bool_())),
        ("texts", pa.large_list(pa.string())),
        ("messages", pa.list_(turn)),
        ("runs", pa.list_(pa.list_(part))),
        ("meta", pa.struct([("answer", pa.string()), ("turn", turn), ("tags", pa.list_(pa.string()))])),
    ]
)


def row(n):
    """One row; which of its values are null, at which level, depends on its number."""
    some = lambda value, every, at=0: None if n % every == at else value
    message = lambda role: {"role": role, "content": some(f"{role} says {n} é\n", 5, 2)}
    lines = [some(f"line {n}", 4, 1), "", None][: n % 4]
    parts = [{"kind": some("sum", 3, 2), "lines": some(lines, 7, 3)}, some({"kind": None, "lines": []}, 6, 4)]
    return {
        "n": n,
        "text": some(f"problem {n} " + "\U0001d54f" * (n % 3), 6, 5),
        "large": some("x" * (n % 17), 8),
        "view": some(["short", "a text that is longer than twelve bytes"][n % 2], 9, 4),
        "word": some(["easy", "hard", "ß"][n % 3], 10, 7),
        "score": some(n / 8, 4, 3),
        "half": some(0.1 * n, 4, 2),
        "small": some(n - 16, 5),
        "big": some(2**64 - 1 - n, 11),
        "right": some([True, some(False, 2), None][: n % 4], 6, 1),
        "texts": some([f"answer {k} of {n}" for k in range(n % 3)] + [None] * (n % 2), 7, 6),
        "messages": some([message("user"), some(message("assistant"), 8, 7)][: n % 3], 9, 2),
        "runs": some([parts, some([], 4), some(parts[:1], 5, 3)][: n % 4], 7, 5),
        "meta": some(
            {
                "answer": some(str(n), 3),
                "turn": some(message("user"), 4, 2),
                "tags": some(["a", None][: n % 3], 5, 4),
            },
            8,
            3,
        ),
    }


rows = [row(n) for n in range(40)]
table = pa.Table.from_pylist(rows, schema=schema)
files = {
    "none": dict(compression="NONE"),
    "snappy": dict(compression="SNAPPY"),
    "gzip": dict(compression="GZIP"),
    "brotli": dict(compression="BROTLI"),
    "lz4": dict(compression="LZ4"),
    "zstd": dict(compression="ZSTD", data_page_version="2.0"),
    # Encodings that writers choose where they leave dictionaries out.
    "delta": dict(
        compression="ZSTD",
        use_dictionary=False,
        data_page_version="2.0",
        column_encoding={
            "n": "DELTA_BINARY_PACKED",
            "text": "DELTA_BYTE_ARRAY",
            "large": "DELTA_LENGTH_BYTE_ARRAY",
            "score": "BYTE_STREAM_SPLIT",
        },
    ),
    "old": dict(compression="SNAPPY", version="1.0", use_compliant_nested_type=False),
}
for name, options in files.items():
    path = out / f"{name}.parquet"
    # Several groups, of several pages.
    pq.write_table(table, path, row_group_size=16, data_page_size=128, write_batch_size=4, **options)
    assert pq.ParquetFile(path).num_row_groups == 3
    back = pq.read_table(path).to_pylist()
    for read, wrote in zip(back, rows):
        # The shortest digits that give the same 32 bits.
        assert read["half"] is None or abs(read["half"] - wrote["half"]) < 1e-6 * (1 + wrote["half"])
        read["half"] = None if read["half"] is None else float(f"{read['half']:.7g}")
    save("parquet.json", back) if name == "none" else None
    assert json.loads((out / "parquet.json").read_text(encoding="utf-8")) == back, name

# --- Tables ----------------------------------------------------------------------------------------

cells = [
    {"id": "007", "problem": "What is 1 + 1?", "solution": "It is 2.", "correct": "True"},
    {"id": "8", "problem": 'Say "hi",\nplease', "solution": 'She said: "hi", twice: ""', "correct": "False"},
    {"id": "9", "problem": "tabs\tand\r\nline ends", "solution": "\n\nA\n\n", "correct": "true"},
    {"id": "10", "problem": " spaces ", "solution": "é ß 𝕏", "correct": ""},
    {"id": "1e5", "problem": "quotes at the end \"", "solution": '"', "correct": "1"},
]
frame = pandas.DataFrame(cells, dtype=str)
frame.to_csv(out / "pandas.csv", index=False)
frame.to_csv(out / "pandas.tsv", index=False, sep="\t")
frame.to_csv(out / "index.csv")
with open(out / "excel.csv", "w", encoding="utf-8-sig", newline="") as file:
    writer = csv.DictWriter(file, cells[0])
    writer.writeheader()
    writer.writerows(cells)
with open(out / "all_quoted.csv", "w", encoding="utf-8", newline="") as file:
    writer = csv.DictWriter(file, cells[0], quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writeheader()
    writer.writerows(cells)
save("tables.json", cells)

# --- Compressed text -------------------------------------------------------------------------------

records = [{"problem": f"{n} + {n}?", "solution": f"{n} + {n} = {2 * n}. " * 40} for n in range(60)]
text = "".join(json.dumps(record) + "\n" for record in records).encode()
halves = [text[: len(text) // 2], text[len(text) // 2 :]]


def zstd(data, *flags, program="zstd"):
    run = subprocess.run([program, *flags, "-c"], input=data, stdout=subprocess.PIPE, check=True)
    return run.stdout


def gz(data):
    return gzip.compress(data, mtime=0)


(out / "members.jsonl.gz").write_bytes(gz(halves[0]) + gz(b"") + gz(halves[1]) + bytes(1024))
(out / "frames.jsonl.zst").write_bytes(
    zstd(halves[0], "--check")
    + b"\x53\x2a\x4d\x18\x03\x00\x00\x00abc"
    + zstd(halves[1], "-19", "--no-check")
)
(out / "parallel.jsonl.zst").write_bytes(zstd(text, "-p", "2", program="pzstd"))
(out / "long.jsonl.zst").write_bytes(zstd(text, "--long=27", "--ultra", "-22"))
(out / "longer.jsonl.zst").write_bytes(zstd(text, "--long=31", "--ultra", "-22"))
(out / "array.json.gz").write_bytes(gz(json.dumps(records).encode()))
(out / "pandas.csv.gz").write_bytes(gz((out / "pandas.csv").read_bytes()))
(out / "pandas.tsv.zst").write_bytes(zstd((out / "pandas.tsv").read_bytes()))
