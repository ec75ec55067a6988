"""The spool: its lock, the node's id, paths that no id can redirect, and cleanup."""

from __future__ import annotations

import os
import threading
from concurrent import futures
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine import errors
from media import spool


def test_one_process_holds_the_spool_and_keeps_its_id(tmp_path: Path) -> None:
    """A second spool on the same folder is refused by name; after stop it starts with the same node id."""
    first, second = spool.Spool(tmp_path / "s"), spool.Spool(tmp_path / "s")
    first.start()
    first.start()
    with pytest.raises(errors.Unavailable, match=str(tmp_path / "s")):
        second.start()
    first.stop()
    first.stop()
    second.start()
    assert second.node_id == first.node_id
    assert second.node_id.startswith("node-")
    second.stop()


def test_nodes_that_share_a_new_spool_start_together(tmp_path: Path) -> None:
    """However they take turns in making its mark, all of them start."""
    for n in range(20):
        root, barrier = tmp_path / str(n), threading.Barrier(6)

        def start(number: int, root: Path = root, barrier: threading.Barrier = barrier) -> str:
            made = spool.Spool(root, root / f"node{number}")
            barrier.wait()
            made.start()
            made.stop()
            return made.lost()

        with futures.ThreadPoolExecutor(6) as pool:
            assert list(pool.map(start, range(6))) == [""] * 6


def test_a_damaged_mark_is_a_lost_spool(tmp_path: Path) -> None:
    """Bytes that are no text are not this node's mark."""
    made = spool.Spool(tmp_path / "s")
    made.start()
    (tmp_path / "s" / ".node").write_bytes(b"\xff\xfe\x00")
    assert "check its mount" in made.lost()
    made.stop()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A spool below a file is an error that names the folder."""
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.Unavailable, match="file/spool"):
        spool.Spool(tmp_path / "file" / "spool").start()


@pytest.mark.parametrize("made", ["by another user", "for all to write to", "as a link"])
def test_a_folder_that_somebody_else_made_is_not_used(tmp_path: Path, made: str) -> None:
    """Where anybody may create folders, the spool must belong to this user alone; elsewhere the operator decides."""
    public, elsewhere = tmp_path / "tmp", tmp_path / "elsewhere"
    public.mkdir()
    elsewhere.mkdir()
    root = public / "recorder-0"
    if made == "as a link":
        root.symlink_to(elsewhere)
    else:
        root.mkdir()
        root.chmod(0o777 if made == "for all to write to" else 0o700)
    with mock.patch.object(os, "geteuid", return_value=os.getuid() + (made == "by another user")):
        first = spool.Spool(root)
        first.start()
        first.stop()
        public.chmod(0o1777)
        with pytest.raises(errors.Unavailable, match="recorder-0 in it is not a folder of this user alone"):
            first.start()


def test_what_is_recorded_is_for_this_user_alone(tmp_path: Path) -> None:
    """No folder of the spool can be read by others, whatever the process's mask allows."""
    path = spool.Spool(tmp_path).segment_path("01JTASK", "al", 1, 1)
    assert [oct(folder.stat().st_mode & 0o777) for folder in (path.parent, path.parent.parent)] == ["0o700"] * 2


@pytest.mark.parametrize(
    "speaker", ["anna", "../../etc/passwd", "a/b", "..", ".", "", "b64-x", "sha-x", "房间", "a" * 500, "%2F", " |~"]
)
def test_no_id_leads_out_of_the_spool(tmp_path: Path, speaker: str) -> None:
    """For any speaker id, the segment is two folders below the root and writable."""
    owned = spool.Spool(tmp_path)
    path = owned.segment_path("01JTASK", speaker, 1, 3)
    assert path.parent.parent == tmp_path / "01JTASK"
    assert path.name == "00000003.flv"
    path.write_bytes(b"x")
    assert owned.segments("01JTASK", speaker, 1) == [path]
    assert owned.output_path("01JTASK", speaker, 1, "00", 3) == path.with_name("finished.00000003.mp3")
    assert owned.output_path("01JTASK", speaker, 1, "00", 0).name == "finished.mp3"


@given(st.text(max_size=40), st.text(max_size=40))
def test_two_ids_never_share_a_name(one: str, other: str) -> None:
    """Different ids have different names, and every name is a plain one."""
    assert (spool.safe_name(one) == spool.safe_name(other)) == (one == other)
    assert "/" not in spool.safe_name(one)
    assert not spool.safe_name(one).startswith(".")


def test_a_transcode_that_was_superseded_ends_in_nothing(tmp_path: Path) -> None:
    """Unfinished output of an earlier epoch is deleted when the next one begins; finished files and its own part stay."""
    owned = spool.Spool(tmp_path)
    old, new = (owned.output_path("T", "anna", 1, "02", epoch) for epoch in (9, 10))
    parts = [path.with_name(f"{path.name}.part") for path in (old, new)]
    for path in (old, new, *parts):
        path.write_bytes(b"x")
    owned.remove_parts("T", "anna", 1, 10)
    assert [path.exists() for path in (old, new, *parts)] == [True, True, False, True]
    owned.remove_outputs("T", "anna", 1, 11, 10)
    assert [path.exists() for path in (old, new, *parts)] == [False, True, False, True]
    owned.remove_files("T", "anna", 1, 9)
    assert new.exists()
    owned.remove_files("T", "anna", 1, 10)
    assert not old.parent.exists()


def test_removing_leaves_the_others(tmp_path: Path) -> None:
    """A recording's files are deleted without its neighbor's, and a second request is harmless."""
    owned = spool.Spool(tmp_path)
    paths = [owned.segment_path("T", "anna", 1, 1), owned.segment_path("T", "anna", 2, 1), owned.segment_path("U", "bob", 1, 1)]
    for path in paths:
        path.write_bytes(b"x")
    assert [owned.remove_files("T", "anna", 1, 1) for _ in range(2)] == [1, 0]
    assert [path.exists() for path in paths] == [False, True, True]
    assert min(owned.space()) > 0
