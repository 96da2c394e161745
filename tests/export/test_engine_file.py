"""The container: what was written comes back, anything else is refused by name."""

import hashlib
import json
import subprocess
import sys

import pytest

from genreward_fast.errors import UserError
from genreward_fast.export.engine import Manifest, TensorSpec
from genreward_fast.export.engine_file import payload_file, read_manifest, write_engine_file


def manifest_for(payload):
    return Manifest(
        backend="aotinductor",
        backend_version="2.11",
        weights_sha256="ab" * 32,
        payload_sha256=hashlib.sha256(payload).hexdigest(),
        compute_capability="sm_90",
        cpu_features=("x86_64", "avx2"),
        inputs=(TensorSpec((2, 3), "float32", 0), TensorSpec((2,), "int64", 0)),
        output=TensorSpec((2, 4), "float16", 0),
        max_batch=16,
        fidelity=1.5e-7,
        torch_version="2.11",
        gpu_name=None,
        driver=None,
        cuda="13.0",
    )


@pytest.fixture
def written(tmp_path):
    payload = bytes(range(256)) + b"\n\ngenreward-engine 1\n"
    (tmp_path / "payload").write_bytes(payload)
    path = tmp_path / "dino.engine"
    write_engine_file(path, manifest_for(payload), tmp_path / "payload")
    return path, payload


def read_all(path):
    with payload_file(path, ".bin") as (manifest, payload):
        return manifest, payload.read_bytes()


def test_round_trip(written):
    path, payload = written
    assert read_all(path) == (manifest_for(payload), payload)
    assert read_manifest(path) == manifest_for(payload)
    with payload_file(path, ".bin") as (_, extracted):
        assert extracted.suffix == ".bin"
    assert not extracted.exists()


def test_an_altered_byte_anywhere_is_refused(written):
    path, _ = written
    whole = path.read_bytes()
    for index in range(0, len(whole), 3):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 0x10]) + whole[index + 1 :])
        with pytest.raises(UserError, match=r"dino\.engine: "):
            read_all(path)


def test_a_truncation_anywhere_and_an_addition_are_refused(written):
    path, _ = written
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 5), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"dino\.engine: "):
            read_all(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(UserError, match="truncated or altered: the sha256 of its payload"):
        read_all(path)


def test_what_is_no_engine_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.engine: no such engine"):
        read_manifest(tmp_path / "none.engine")
    with pytest.raises(UserError, match="cannot be opened"):
        read_manifest(tmp_path)
    (tmp_path / "notes.txt").write_text("not an engine at all, but long enough to be taken for one\n")
    with pytest.raises(UserError, match=r"notes\.txt: not an engine"):
        read_manifest(tmp_path / "notes.txt")


def test_a_manifest_with_other_fields_is_refused(tmp_path):
    line = b'{"backend": "aotinductor", "colour": "red"}\n'
    digest = hashlib.sha256(line).hexdigest().encode()
    (tmp_path / "old.engine").write_bytes(b"genreward-engine 1\n" + digest + b"\n" + line)
    with pytest.raises(UserError, match=r"old.engine: its manifest has other fields[^\n]*$"):
        read_manifest(tmp_path / "old.engine")


def test_a_manifest_from_before_onnx_was_recorded_is_read(written):
    path, payload = written
    magic, _, line, rest = path.read_bytes().split(b"\n", 3)
    fields = json.loads(line)
    assert (fields.pop("onnx_sha256"), fields.pop("onnx_fidelity")) == (None, None)
    line = json.dumps(fields).encode()
    digest = hashlib.sha256(line + b"\n").hexdigest().encode()
    path.write_bytes(b"\n".join([magic, digest, line, rest]))
    assert read_all(path) == (manifest_for(payload), payload)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(written, tmp_path):
    path, payload = written
    with pytest.raises(FileNotFoundError):
        write_engine_file(path, manifest_for(payload), tmp_path / "missing")
    assert read_all(path) == (manifest_for(payload), payload)
    with pytest.raises(FileNotFoundError):
        write_engine_file(tmp_path / "new.engine", manifest_for(payload), tmp_path / "missing")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["dino.engine", "payload"]


def test_readers_see_whole_files_while_two_processes_write(written, tmp_path):
    path, _ = written
    code = """
import hashlib, sys
from dataclasses import replace
from pathlib import Path
from genreward_fast.export.engine_file import read_manifest, write_engine_file
path, own, fill = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3].encode()
own.write_bytes(fill * 300_000)
manifest = replace(read_manifest(path), payload_sha256=hashlib.sha256(fill * 300_000).hexdigest())
for _ in range(30):
    write_engine_file(path, manifest, own)
"""
    commands = [[sys.executable, "-c", code, str(path), str(tmp_path / f"own-{fill}"), fill] for fill in "ab"]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        seen.add(read_all(path)[1][:1])
    assert [(writer.wait(), writer.stderr.read()) for writer in writers] == [(0, ""), (0, "")]
    seen.add(read_all(path)[1][:1])
    assert seen & {b"a", b"b"}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["dino.engine", "own-a", "own-b", "payload"]
