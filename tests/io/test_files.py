"""Reading files: how much memory is asked for, and what is said of paths that lead nowhere."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from acdc.errors import FileError
from acdc.io.files import read_bytes
from acdc.io.sizes import parse_bytes


def test_a_small_file_needs_little_memory(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"{}")
    tracemalloc.start()
    assert read_bytes(tmp_path / "a") == b"{}"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_a_file_whose_size_is_not_known_is_read(tmp_path: Path) -> None:
    path = Path("/proc/self/status")
    if not path.exists():
        pytest.skip("no /proc")
    assert path.stat().st_size == 0 and b"VmPeak" in read_bytes(path)
    with pytest.raises(FileError, match="larger than 100 bytes"):
        read_bytes(path, 100)


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101])
def test_the_limit_is_exact(tmp_path: Path, size: int) -> None:
    (tmp_path / "a").write_bytes(b"x" * size)
    if size <= 100:
        assert read_bytes(tmp_path / "a", 100) == b"x" * size
    else:
        with pytest.raises(FileError, match="larger than 100 bytes"):
            read_bytes(tmp_path / "a", 100)


def test_a_sparse_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.truncate(20_000_000_000)
    with pytest.raises(FileError, match="larger than 500,000,000 bytes"):
        read_bytes(tmp_path / "a")


def test_a_relative_path_that_is_missing_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError) as error:
        read_bytes(Path("x/c.json"))
    assert str(error.value).endswith(f"in the current folder, {tmp_path})")
    with pytest.raises(FileError) as error:
        read_bytes(tmp_path / "c.json")
    assert "current folder" not in str(error.value)


@pytest.mark.parametrize(("text", "size"), [("4GB", 4e9), ("1.5 GiB", 1.5 * 2**30), ("500M", 5e8), ("1MB", 1e6)])
def test_sizes(text: str, size: float) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["0GB", "0.0MB", "0.5MB", "9" * 400 + "GB", "GB", "-1GB", "1e9GB", "", "1 kB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|should be 1 MB"):
        parse_bytes(text)
