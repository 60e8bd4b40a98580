"""Spool files: what was acknowledged is recovered, whatever else is in the folder."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from process_server.spool import recovery
from process_server.spool.aside import Aside, Kind, Note
from process_server.spool.file import SpooledSegment, SpoolFile
from process_server.spool.recovery import Damage, KeyWantedError, recover_folder
from shared.errors import SpoolError, SpoolFullError, SpoolLostError
from shared.host import durable
from shared.keys.sealing import MachineKey
from shared.log import segment
from shared.log.segment import FileHeader, Frame
from tests.epoch_ids import eid
from tests.logs import KEY, Made, file_header, make_chain


def key_of(_header: FileHeader) -> MachineKey:
    return KEY


def sealed(header: FileHeader, made: Sequence[Made]) -> list[Frame]:
    key = KEY.file_key(header.salt_bytes)
    return [segment.seal_frame(key, "m1", header.claim, m.encoded, m.batch, m.digest) for m in made]


def spool(folder: Path, made: Sequence[Made], *, close: bool = True) -> SpoolFile:
    header = file_header(made[0])
    file = SpoolFile(folder, header)
    file.append(sealed(header, made))
    if close:
        file.close()
    else:
        file._close()  # as a kill would: no footer
    return file


def set_nothing_aside(damage: Damage) -> None:
    raise AssertionError(damage)


def recover(folder: Path) -> list[SpooledSegment]:
    """Where all files continue each other, and nothing is damaged."""
    runs = recover_folder(folder, eid(1), key_of, set_nothing_aside)
    assert len(runs) <= 1
    return runs[0] if runs else []


def recover_with_damage(folder: Path) -> tuple[list[list[list[int]]], list[tuple[int, int, bool]]]:
    """The batches of each file of each run, and what was set aside: first, last, whether no batch of the file is left."""
    aside = Aside("m1", folder / "aside")
    found: list[tuple[int, int, bool]] = []

    def set_aside(damage: Damage) -> None:
        note = Note(epoch=1, first=damage.first, last=damage.last, cause=damage.cause)
        aside.put(Kind.DAMAGED, damage.path, note, keep=not damage.whole)
        found.append((damage.first, damage.last, damage.whole))

    runs = recover_folder(folder, eid(1), key_of, set_aside, thorough=True)
    return [numbers(run) for run in runs], found


def numbers(segments: Sequence[SpooledSegment]) -> list[list[int]]:
    return [[row.number for row in s.footer().rows] for s in segments]


def test_closed_and_unclosed_files_are_recovered_in_order(tmp_path: Path) -> None:
    chain = make_chain(7)
    spool(tmp_path, chain[:3])
    spool(tmp_path, chain[3:5])
    spool(tmp_path, chain[5:], close=False)
    found = recover(tmp_path)
    assert numbers(found) == [[1, 2, 3], [4, 5], [6, 7]]
    for s in found:
        data = s.read().data
        assert segment.check_body(data, "s") == s.footer() == s.read().footer
        assert s.path.read_bytes() == data, "recovery closes the file"
    assert numbers(recover(tmp_path)) == numbers(found), "the second recovery finds nothing to do"


def test_closed_files_are_recovered_by_their_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = make_chain(7)
    spool(tmp_path, chain[:3])
    spool(tmp_path, chain[3:5])
    spool(tmp_path, chain[5:], close=False)
    whole: list[str] = []
    real = recovery._read_from_disk

    def read(path: Path) -> bytes:
        whole.append(path.name)
        return real(path)

    monkeypatch.setattr(recovery, "_read_from_disk", read)
    assert numbers(recover(tmp_path)) == [[1, 2, 3], [4, 5], [6, 7]]
    assert whole == ["000000000006.seg"]
    assert numbers(recover(tmp_path)) == [[1, 2, 3], [4, 5], [6, 7]]
    assert whole == ["000000000006.seg"], "it has a footer now"


def test_a_footer_that_does_not_fit_in_what_is_read_of_the_end_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool(tmp_path, make_chain(9))
    monkeypatch.setattr(recovery, "_END_B", 400)
    monkeypatch.setattr(recovery, "_read_from_disk", None)
    assert numbers(recover(tmp_path)) == [[*range(1, 10)]]


@pytest.mark.parametrize("cut_b", [1, 40, 100, 700])
def test_a_torn_tail_is_cut(tmp_path: Path, cut_b: int) -> None:
    file = spool(tmp_path, make_chain(4), close=False)
    size_b = file.path.stat().st_size
    with file.path.open("r+b") as f:
        f.truncate(size_b - cut_b)
    found = recover(tmp_path)
    ends = [row.offset + row.length for row in file.draft.rows]
    assert numbers(found) == [[1, 2, 3, 4][: sum(end <= size_b - cut_b for end in ends)]]


def test_a_group_that_was_written_out_of_order_is_cut_at_its_first_hole(tmp_path: Path) -> None:
    file = spool(tmp_path, make_chain(4), close=False)
    hole = file.draft.rows[2]
    with file.path.open("r+b") as f:
        f.seek(hole.offset + 100)
        f.write(bytes(200))
    runs, aside = recover_with_damage(tmp_path)
    assert (runs, aside) == ([[[1, 2]]], [(3, 4, False)]), (
        "whether they were acknowledged nobody here can know"
    )


def test_batches_that_a_footer_lists_and_nobody_can_open_are_set_aside(tmp_path: Path) -> None:
    file = spool(tmp_path, make_chain(3))
    with file.path.open("r+b") as f:
        f.seek(file.draft.rows[1].offset + 100)
        f.write(b"\xff\xff\xff")
    before = file.path.read_bytes()
    assert recover_with_damage(tmp_path) == ([[[1]]], [(2, 3, False)])
    (aside,) = (tmp_path / "aside/damaged").glob("*.seg")
    assert aside.read_bytes() == before
    assert recover_with_damage(tmp_path)[0] == [[[1]]], "the second recovery finds the same"
    assert len(list((tmp_path / "aside/damaged").glob("*.seg"))) == 1


def test_what_a_failed_sync_left_is_cut_where_the_next_file_begins(tmp_path: Path) -> None:
    chain = make_chain(6)
    spool(tmp_path, chain[:4], close=False)  # 3 and 4 were never acknowledged, and then sent again
    spool(tmp_path, chain[2:6])
    assert numbers(recover(tmp_path)) == [[1, 2], [3, 4, 5, 6]]


def test_files_without_a_whole_batch_and_foreign_files_are_no_obstacle(tmp_path: Path) -> None:
    chain = make_chain(3)
    spool(tmp_path, chain[:2])
    (tmp_path / "000000000003.seg").write_bytes(file_header_bytes(chain[2]) + b"\0" * 50)
    (tmp_path / "000000000009.seg").write_bytes(b"")
    (tmp_path / "state.json").write_bytes(b"{}")
    assert numbers(recover(tmp_path)) == [[1, 2]]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000000000001.seg", "state.json"]


def file_header_bytes(made: Made) -> bytes:
    return segment.encode_file_header(file_header(made))


def test_what_does_not_continue_the_file_before_is_another_run(tmp_path: Path) -> None:
    chain, other = make_chain(6), make_chain(6, seed=1)
    spool(tmp_path, chain[:2])
    spool(tmp_path, other[2:4])
    spool(tmp_path, chain[4:6])  # 3 and 4 are gone
    assert recover_with_damage(tmp_path) == ([[[1, 2]], [[3, 4]], [[5, 6]]], [])


def test_a_full_disk_leaves_the_file_as_it_was_and_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = make_chain(4)
    header = file_header(chain[0])
    file = SpoolFile(tmp_path, header)
    frames = sealed(header, chain)
    real = durable.write_all

    def full(fd: int, buffers: Sequence[bytes], offset: int) -> None:
        real(fd, [b"".join(buffers)[:100]], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "write_all", full)
    with pytest.raises(SpoolFullError, match="No space left"):
        file.append(frames[:1])
    assert not file.path.exists()
    monkeypatch.setattr(durable, "write_all", real)
    file.append(frames[:2])
    size_b = file.path.stat().st_size
    monkeypatch.setattr(durable, "write_all", full)
    with pytest.raises(SpoolFullError):
        file.append(frames[2:])
    assert file.path.stat().st_size == size_b
    monkeypatch.setattr(durable, "write_all", real)
    file.append(frames[2:])
    file.close()
    assert numbers(recover(tmp_path)) == [[1, 2, 3, 4]]


def test_after_a_failed_sync_the_file_ends_at_what_was_durable_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = make_chain(3)
    header = file_header(chain[0])
    file = SpoolFile(tmp_path, header)
    frames = sealed(header, chain)
    file.append(frames[:1])

    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(durable, "sync_data", fail)
    with pytest.raises(SpoolError, match="sync failed"):
        file.append(frames[1:])
    monkeypatch.undo()
    spooled = file.close()
    assert spooled is not None
    assert numbers([spooled]) == [[1]]
    assert segment.check_body(spooled.read().data, "s").rows == spooled.footer().rows
    assert numbers(recover(tmp_path)) == [[1]]


def test_a_file_of_which_nothing_became_durable_vanishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = make_chain(1)
    header = file_header(chain[0])
    file = SpoolFile(tmp_path, header)

    def fail(_folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(durable, "sync_folder", fail)
    with pytest.raises(SpoolError):
        file.append(sealed(header, chain))
    assert file.close() is None
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_for_footers_is_recovered_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = make_chain(5)
    spool(tmp_path, chain[:3])
    spool(tmp_path, chain[3:], close=False)

    def full(_fd: int, _buffers: Sequence[bytes], _offset: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_all", full)
        found = recover(tmp_path)
        assert numbers(found) == [[1, 2, 3], [4, 5]]
        for s in found:
            assert segment.check_body(s.read().data, "s") == s.footer()
    assert numbers(recover(tmp_path)) == [[1, 2, 3], [4, 5]]


def test_a_spool_file_that_the_disk_changed_is_not_uploaded(tmp_path: Path) -> None:
    spool(tmp_path, make_chain(3))
    (spooled,) = recover(tmp_path)
    with spooled.path.open("r+b") as f:
        f.seek(700)
        f.write(b"\xff\xff")
    with pytest.raises(SpoolLostError, match="batches 1 to 3"):
        spooled.read()
    spooled.path.unlink()
    with pytest.raises(SpoolLostError, match="No such file"):
        spooled.read()


def test_files_of_another_epoch_stay_until_every_key_is_there(tmp_path: Path) -> None:
    """Keys may be away for weeks, and a recovery that waits for one has changed nothing."""
    chain = make_chain(4)
    spool(tmp_path, chain[:2])
    spool(tmp_path, chain[2:], close=False)

    def wanted(header: FileHeader) -> MachineKey:
        raise KeyWantedError(header)

    before = sorted(tmp_path.iterdir())
    ours = file_header(chain[2]).epoch_id
    path = tmp_path / f"{1:012d}.seg"
    header, start = segment.decode_file_header(path.read_bytes(), path.name)
    other = segment.encode_file_header(msgspec.structs.replace(header, claim=eid(1, life=2).claim))
    path.write_bytes(other + path.read_bytes()[start:])
    with pytest.raises(KeyWantedError):
        recover_folder(tmp_path, ours, wanted, set_nothing_aside)
    assert sorted(tmp_path.iterdir()) == before
    found: list[Damage] = []
    runs = recover_folder(tmp_path, ours, key_of, found.append)
    assert [(damage.path, damage.foreign) for damage in found] == [(path, True)]
    assert [numbers(run) for run in runs] == [[[3, 4]]]
