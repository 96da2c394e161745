"""The container of an engine: one file that holds the manifest and the payload, and shows when it was altered.

    line 1   genreward-engine 1
    line 2   sha256 of line 3, in hexadecimal
    line 3   the manifest, as JSON (it holds the payload's sha256)
    rest     the payload

`head -n 3 FILE` shows everything but the payload. The digests detect damage, not forgery: an engine is a program, so
load only those whose origin you trust.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO

import cattrs

from genreward_fast.errors import UserError
from genreward_fast.export.engine import Manifest
from genreward_fast.files import atomic_path

_MAGIC = b"genreward-engine 1\n"
_DIGEST_LINE = 2 * hashlib.sha256().digest_size + 1
_CHUNK = 1 << 20
_MAX_MANIFEST = 1 << 20

_converter = cattrs.Converter(forbid_extra_keys=True)


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_engine_file(path: str | Path, manifest: Manifest, payload: Path) -> None:
    """Writes the manifest and the bytes of the file `payload` to `path`, atomically."""
    line = json.dumps(asdict(manifest), allow_nan=False).encode() + b"\n"
    with atomic_path(path) as temporary, open(temporary, "wb") as file, open(payload, "rb") as source:
        file.write(_MAGIC + hashlib.sha256(line).hexdigest().encode() + b"\n" + line)
        shutil.copyfileobj(source, file, _CHUNK)


def read_manifest(path: str | Path) -> Manifest:
    """The manifest of an engine file; the payload is not read.

    Raises:
        UserError: the file is missing, is not an engine, or its head was altered or cut.
    """
    with _open(path) as file:
        return _read_head(path, file)


@contextlib.contextmanager
def payload_file(path: str | Path, suffix: str) -> Iterator[tuple[Manifest, Path]]:
    """The manifest and a temporary file with the payload, both verified; the file is gone after the block.

    Raises:
        UserError: the file is missing, is not an engine, or any part of it was altered or cut.
    """
    with tempfile.TemporaryDirectory(prefix="genreward-engine-") as folder:
        payload = Path(folder) / f"payload{suffix}"
        digest = hashlib.sha256()
        with _open(path) as file, open(payload, "wb") as out:
            manifest = _read_head(path, file)
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                out.write(chunk)
        if digest.hexdigest() != manifest.payload_sha256:
            raise _damaged(path, "the sha256 of its payload is not the one recorded")
        yield manifest, payload


def _open(path: str | Path) -> IO[bytes]:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise UserError(f"{path}: no such engine; build it with build_engine") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror})") from None


def _read_head(path: str | Path, file: IO[bytes]) -> Manifest:
    magic = file.read(len(_MAGIC))
    if magic != _MAGIC:
        raise UserError(
            f"{path}: not an engine of this version of genreward-fast, or damaged; build it again with build_engine"
        )
    digest = file.read(_DIGEST_LINE)
    line = file.readline(_MAX_MANIFEST)
    if digest != hashlib.sha256(line).hexdigest().encode() + b"\n":
        raise _damaged(path, "the sha256 of its manifest is not the one recorded")
    try:
        return _converter.structure(json.loads(line), Manifest)
    except (ValueError, cattrs.BaseValidationError) as error:
        raise UserError(
            f"{path}: its manifest has other fields than this version's ({error}); build it again"
        ) from None


def _damaged(path: str | Path, reason: str) -> UserError:
    return UserError(f"{path}: the engine is truncated or altered: {reason}; build it again")
