import io
import os
import signal
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
from ranks import alone, snapshot, specs

from mpinn.storage import schema
from mpinn.storage.checkpoint import SaveError, Saver
from mpinn.storage.reader import Checkpoint
from mpinn.storage.writer import Header, Piece, Queue, write


def pieces(length: int = 3) -> list[Piece]:
    values = np.arange(1000, dtype=np.float64)
    every = (slice(0, 1000),)
    return [Piece("model/network", "model/network", f"layer{i}/w", (1000,), every, values) for i in range(length)]


class Disk:
    """Stands for ``open``: a disk that takes ``room`` writes of at most ``most`` bytes each and then is full."""

    def __init__(self, room: int, most: int = 1 << 30):
        self.room, self.most, self.writes = room, most, 0

    def __call__(self, path: Path, mode: str, buffering: int) -> io.FileIO:
        disk = self

        class File(io.FileIO):
            def write(self, buffer) -> int:
                disk.writes += 1
                if disk.writes > disk.room:
                    raise OSError(28, "No space left on device")
                return super().write(memoryview(buffer)[: disk.most])

        return File(path, "w+b")


def write_on(disk: Disk, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpinn.storage.sink.open", disk, raising=False)
    write(path, Header.of(snapshot(3, specs()), None), pieces())


def test_a_disk_that_fills_up_at_any_write_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    unlimited = Disk(1 << 30)
    write_on(unlimited, path, monkeypatch)
    good = path.read_bytes()
    assert unlimited.writes > 5
    for room in range(unlimited.writes):
        with pytest.raises(OSError, match="No space left"):
            write_on(Disk(room), path, monkeypatch)
        assert h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE) == 0
    write_on(Disk(unlimited.writes), path, monkeypatch)
    assert path.read_bytes() == good


def test_a_system_that_writes_in_small_steps_gives_the_same_file(tmp_path, monkeypatch):
    write_on(Disk(1 << 30), tmp_path / "a.h5", monkeypatch)
    write_on(Disk(1 << 30, most=100), tmp_path / "b.h5", monkeypatch)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_queue_holds_no_more_than_its_budget():
    queue, taken = Queue(2 * 8000), threading.Event()
    sent: list[int] = []

    def fill() -> None:
        with queue:
            for number, piece in enumerate(pieces(5)):
                queue.put(piece)
                sent.append(number)
        taken.set()

    thread = threading.Thread(target=fill)
    thread.start()
    assert not taken.wait(0.1)
    assert sent == [0, 1]
    assert [piece.name for piece in queue] == [f"layer{i}/w" for i in range(5)]
    thread.join()


def test_the_writer_does_not_begin_while_more_fits():
    queue, begun, taken = Queue(1 << 20), threading.Event(), list[str]()

    def take() -> None:
        for piece in queue:
            begun.set()
            taken.append(piece.name)

    thread = threading.Thread(target=take)
    thread.start()
    with queue:
        for piece in pieces(3):
            queue.put(piece)
            assert not begun.wait(0.05)
    thread.join()
    assert taken == [f"layer{i}/w" for i in range(3)]


def test_a_block_larger_than_the_budget_still_passes():
    queue = Queue(1)
    with queue:
        queue.put(pieces(1)[0])
    assert len(list(queue)) == 1


def test_a_failed_writer_stops_nobody(tmp_path):
    """In a process of its own, because the failure would be to wait for ever."""
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(20)
            saver = Saver(tmp_path / "missing", alone(), budget=1)
            saver.save(snapshot(1, specs()))
            try:
                saver.wait()
            except SaveError:
                os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (7, 1, 5), (1000,), (1, 1, 1000), (40, 30), (2, 3, 4, 50)])
@pytest.mark.parametrize("limit", [8, 64, 1000, 1 << 20])
def test_blocks_cover_an_array_once_in_order_and_are_small(shape, limit, monkeypatch):
    monkeypatch.setattr(schema, "BLOCK", limit)
    array = np.arange(np.prod(shape, dtype=int), dtype=np.float64).reshape(shape)
    flat, position = array.reshape(-1), 0
    for block in schema.blocks(shape, 8):
        assert block.start == position
        np.testing.assert_array_equal(array[block.selection].reshape(-1), flat[block.start : block.stop])
        assert (block.stop - block.start) * 8 <= limit
        position = block.stop
    assert position == array.size


def test_small_values_of_every_type_come_back(tmp_path):
    data = {"a": -3, "b": 1.5, "c": "größe", "d": "", "e": True, "f": 2**62}
    write(tmp_path / "a.h5", Header.of(snapshot(1, specs(), data=data, history={"none/yet": np.zeros(0)}), 0.5), [])
    with Checkpoint(tmp_path / "a.h5") as file:
        assert file.data == data
        assert [type(value) for value in file.data.values()] == [type(data[name]) for name in file.data]
        assert list(file.history) == ["none/yet"]
        assert file.kinds() == []
