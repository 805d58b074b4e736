from pathlib import Path

import h5py
import numpy as np
import pytest
from ranks import SHAPES, ThreadChannel, Threads, alone, blank, filled, snapshot, specs

import mpinn.storage.schema
import mpinn.storage.survey
from mpinn.consensus.statistics import merge_layer
from mpinn.nn.layout import Layout
from mpinn.storage.checkpoint import SaveError, Saver
from mpinn.storage.reader import Checkpoint
from mpinn.storage.restore import newest, restore
from mpinn.storage.schema import VectorSpec


def equal(a: list[VectorSpec], b: list[VectorSpec]) -> bool:
    return all(x.vector.tobytes() == y.vector.tobytes() for x, y in zip(a, b, strict=True))


def save(directory: Path, *steps: int, **options) -> None:
    saver = Saver(directory, alone(), **options)
    for step in steps:
        saver.save(snapshot(step, specs(step)))
    saver.close()


def save_replicas(directory: Path, replicas: list[list[VectorSpec]], **options) -> Threads:
    """One rank per replica; ``merge``, ``shares`` and ``merges`` as in Saver."""
    merge, shares, world = options.pop("merge", None), options.pop("shares", None), Threads(len(replicas))

    def program(channel: ThreadChannel) -> None:
        saver = Saver(directory, channel, **options)
        saver.save(snapshot(5, replicas[channel.rank], len(replicas)), merge=merge, shares=shares)
        saver.close()

    world.run(program)
    return world


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_round_trip_is_exact(tmp_path, dtype):
    vectors = specs(1, dtype)
    vectors[0].vector[:4] = [np.nan, -0.0, np.inf, 1e-40]
    saver = Saver(tmp_path, alone())
    saver.save(snapshot(20, vectors))
    saver.close()
    path, into = tmp_path / "checkpoint-00000020.h5", blank(vectors)
    assert newest(tmp_path, pytest.fail) == path
    assert restore(path, into, (1, 1, 1), 0) == []
    assert equal(into, vectors)


def test_a_file_says_what_it_is(tmp_path):
    save(tmp_path, 20)
    with Checkpoint(tmp_path / "latest") as file:
        assert (file.step, file.epoch, file.seed, file.grid, file.dtype) == (20, 2, 3, (1, 1, 1), "float32")
        assert file.program == mpinn.__version__
        assert file.configuration == snapshot(20, specs()).configuration
        assert file.data == {"position": 2560, "deal": "fixed"}
        assert file.random == {"seed": 3}
        assert file.scalars["best"] == 0.5
        assert file.scalars["weights"].tolist() == [0.25, 0.75]
        assert file.history["step"].tolist() == list(range(20))
        assert set(file.kinds()) == {"model/network", "optimizer/momentum/network", "state/network"}
        layout = Layout(SHAPES, "float32")
        assert [p.name for p in file.parameters("model/network")] == [entry.name for entry in layout]
        entry = layout.entries[0]
        weight = specs(20)[0].vector[entry.slice].reshape(entry.shape)
        assert file.weights("hidden1/dense/weight").tobytes() == weight.tobytes()


def test_any_hdf5_tool_finds_real_shapes_and_checksums(tmp_path):
    save(tmp_path, 20)
    with h5py.File(tmp_path / "latest") as file:
        assert file["model/network/Überlagerung β/kernel"].shape == (3, 3, 1, 2)
        unchecked = []
        file.visititems(
            lambda name, item: (
                unchecked.append(name)
                if isinstance(item, h5py.Dataset) and item.shape and item.size and not item.fletcher32
                else None
            )
        )
        assert unchecked == []


def test_the_same_state_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save(tmp_path / name, 20)
    a, b = ((tmp_path / name / "checkpoint-00000020.h5").read_bytes() for name in ("a", "b"))
    assert a == b


def test_large_arrays_travel_in_blocks_through_a_small_queue(tmp_path, monkeypatch):
    monkeypatch.setattr(mpinn.storage.schema, "BLOCK", 512)
    shapes = {"a": {"w": (3, 50, 7)}, "b": {"w": (1000,)}, "c": {"w": (2, 1, 300)}}
    replicas = [specs(rank, shapes=shapes) for rank in range(2)]
    world = save_replicas(tmp_path, replicas, budget=2000)
    assert world.largest <= 512
    for rank in range(2):
        into = blank(replicas[rank])
        restore(tmp_path / "latest", into, (2, 1, 1), rank)
        assert equal(into, replicas[rank])
    with h5py.File(tmp_path / "latest") as file:
        assert file["model/network/a/w"].chunks == (1, 18, 7)


def test_replicas_that_agree_are_stored_once(tmp_path):
    save_replicas(tmp_path, [specs(1), specs(1), specs(1)])
    with Checkpoint(tmp_path / "latest") as file:
        assert file.replicas == []
        assert not any(p.merged for p in file.parameters("model/network"))
    for grid, replica in (((3, 1, 1), 2), ((1, 1, 1), 0)):
        into = blank(specs(1))
        assert restore(tmp_path / "latest", into, grid, replica) == []
        assert equal(into, specs(1))


def test_replicas_that_differ_are_kept_and_merged(tmp_path):
    replicas = [specs(rank) for rank in range(3)]
    for vectors in replicas:  # in the momentum they agree
        vectors[1].vector[:] = replicas[0][1].vector
    weights = np.array([0.5, 0.2, 0.3])
    save_replicas(tmp_path, replicas, merge=weights)
    path = tmp_path / "latest"
    for rank in range(3):
        into = blank(replicas[rank])
        assert restore(path, into, (3, 1, 1), rank) == []
        assert equal(into, replicas[rank])
    into = blank(replicas[0])
    said = restore(path, into, (2, 1, 1), 1)
    assert [line.split(":")[0] for line in said] == ["model/network", "state/network"]
    assert all("3 replicas of step 5" in line for line in said)
    for index in (0, 2):
        total = weights[0] * replicas[0][index].vector.astype(np.float64)
        for rank in (1, 2):
            total = total + weights[rank] * replicas[rank][index].vector.astype(np.float64)
        assert into[index].vector.tobytes() == total.astype(np.float32).tobytes()
    assert into[1].vector.tobytes() == replicas[0][1].vector.tobytes()
    with Checkpoint(path) as file:
        assert file.replicas == [0, 1, 2]
        assert set(file.kinds(1)) == {"model/network", "state/network"}


def test_replicas_that_differ_in_their_last_number_alone_are_kept(tmp_path, monkeypatch):
    """They are compared in pieces."""
    monkeypatch.setattr(mpinn.storage.survey, "BLOCK", 64)
    replicas = [specs(1), specs(1)]
    replicas[1][0].vector[replicas[1][0].layout.entries[-1].slice] += 1
    save_replicas(tmp_path, replicas)
    for rank in range(2):
        into = blank(replicas[rank])
        restore(tmp_path / "latest", into, (2, 1, 1), rank)
        assert equal(into, replicas[rank])


def test_a_replica_of_weight_zero_is_masked(tmp_path):
    replicas = [specs(rank) for rank in range(3)]
    for spec in replicas[1]:
        for entry in spec.layout:
            spec.vector[entry.slice] = np.nan
    replicas[2][0].vector[0] = -0.0
    save_replicas(tmp_path, replicas, merge=np.array([0, 0, 1.0]))
    into = blank(replicas[0])
    restore(tmp_path / "latest", into, (1, 1, 1), 0)
    assert equal(into, replicas[2])


def test_elements_may_have_weights_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(mpinn.storage.schema, "BLOCK", 512)
    shapes = {"a": {"w": (3, 50, 7)}, "b": {"w": (1000,)}}
    replicas = [specs(rank, shapes=shapes) for rank in range(3)]
    own = np.random.default_rng(0).dirichlet(np.ones(3), 1050).T
    own[:, 400:500] = [[0], [0.25], [0.75]]
    for spec in replicas[0][:2]:
        # where a replica counts nothing it may be anything
        spec.vector[spec.layout.entries[0].start :][400:500] = np.nan
    wanted = {"a/w": own, "b/w": None}
    save_replicas(tmp_path, replicas, merge=np.array([0.5, 0.25, 0.25]), shares=wanted.get)
    with h5py.File(tmp_path / "latest") as file:
        for kind in ("model/network", "optimizer/momentum/network"):
            for name, weights in (("a/w", own.reshape(3, 3, 50, 7)), ("b/w", np.array([[0.5], [0.25], [0.25]]))):
                apart = np.array([file[f"replica/{rank}/{kind}/{name}"][()] for rank in range(3)], np.float64)
                mean = np.where(weights != 0, weights * np.where(weights != 0, apart, 0), 0).sum(axis=0)
                np.testing.assert_allclose(file[f"{kind}/{name}"][()], mean, rtol=1e-6)


@pytest.mark.parametrize("weights", [[0, 0], [np.nan, 1], [1, 0, 0]])
def test_weights_that_give_no_mean_are_refused(tmp_path, weights):
    with pytest.raises(ValueError, match="2 replicas"):
        save_replicas(tmp_path, [specs(0), specs(1)], merge=np.array(weights))


def test_variances_are_merged_with_how_far_the_means_are_apart(tmp_path):
    replicas = [specs(rank, "float64") for rank in range(3)]
    weights = np.array([0.25, 0, 0.75])
    replicas[1][2].vector.fill(np.nan)
    save_replicas(tmp_path, replicas, merge=weights, merges={"state": merge_layer})
    with Checkpoint(tmp_path / "latest") as file:
        means = [r[2].vector[r[2].layout.entries[0].slice] for r in replicas]
        variances = [r[2].vector[r[2].layout.entries[1].slice] for r in replicas]
        mean = 0.25 * means[0] + 0.75 * means[2]
        spread = 0.25 * (variances[0] + means[0] ** 2) + 0.75 * (variances[2] + means[2] ** 2) - mean**2
        assert (spread > 0).any()
        np.testing.assert_allclose(file.weights("hidden1/norm/mean", "state/network"), mean, rtol=1e-13)
        np.testing.assert_allclose(file.weights("hidden1/norm/variance", "state/network"), spread, rtol=1e-12)


def test_stages_and_replicas_share_one_file(tmp_path):
    whole = Layout(SHAPES, "float32")
    first, second = ({k: SHAPES[k] for k in keys} for keys in (["hidden1"], ["Überlagerung β", "output"]))
    layouts = [Layout(first, "float32"), Layout(second, "float32")]
    held = {rank: filled(layouts[rank % 2], rank if rank % 2 else 0) for rank in range(4)}  # the first stages agree
    world = Threads(4)

    def program(channel):
        stage = channel.rank % 2
        vectors = [VectorSpec("model/network", layouts[stage], held[channel.rank])]
        saver = Saver(tmp_path, channel, replica=channel.rank // 2)
        saver.save(snapshot(5, vectors, grid=(2, 2, 1)))
        saver.close()

    world.run(program)
    into = VectorSpec("model/network", whole, np.zeros(whole.size, "float32"))
    restore(tmp_path / "latest", [into], (2, 1, 1), 1)
    start = whole.span(("Überlagerung β", "output"))
    assert into.vector[: start.start].tobytes() == held[2].tobytes()
    assert into.vector[start].tobytes() == held[3].tobytes()
    part = VectorSpec("model/network", layouts[1], np.zeros(layouts[1].size, "float32"))
    restore(tmp_path / "latest", [part], (2, 2, 1), 0, whole=False)
    assert part.vector.tobytes() == held[1].tobytes()


def test_training_may_go_on_while_the_disk_works(tmp_path):
    saver, vectors, history = Saver(tmp_path, alone()), specs(1), {"loss": np.ones(3)}
    saver.save(snapshot(1, vectors, history=history))
    for spec in vectors:
        spec.vector[:] = 9
    history["loss"][:] = 9
    saver.close()
    into = blank(vectors)
    restore(tmp_path / "latest", into, (1, 1, 1), 0)
    assert equal(into, specs(1))
    with Checkpoint(tmp_path / "latest") as file:
        assert file.history["loss"].tolist() == [1, 1, 1]


def test_the_newest_and_the_best_are_kept(tmp_path):
    saver = Saver(tmp_path, alone(), keep=2)
    for step, score in enumerate([0.1, 0.9, 0.3, float("nan"), 0.9, None, 0.2]):
        saver.save(snapshot(step, specs()), score)
    saver.close()
    assert [p.name for p in sorted(tmp_path.glob("*.h5"))] == [f"checkpoint-0000000{step}.h5" for step in (1, 5, 6)]
    assert (tmp_path / "latest").resolve().name == "checkpoint-00000006.h5"
    assert newest(tmp_path, pytest.fail) == tmp_path / "checkpoint-00000006.h5"


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 1, 2)
    saver = Saver(tmp_path, alone())
    saver.save(snapshot(2, specs(50)))
    saver.close()
    into = blank(specs())
    restore(newest(tmp_path, pytest.fail), into, (1, 1, 1), 0)
    assert equal(into, specs(50))
    assert len(list(tmp_path.glob("*.h5"))) == 2


def test_what_a_killed_run_left_is_removed_at_the_start(tmp_path):
    save(tmp_path, 1)
    left = [tmp_path / ".checkpoint-00000002.h5.partial", tmp_path / ".checkpoints.json.partial"]
    for path in left:
        path.write_bytes(b"half")
    Saver(tmp_path, alone())
    assert not any(path.exists() for path in left)
    assert newest(tmp_path, pytest.fail) == tmp_path / "checkpoint-00000001.h5"


def poll_until_done(saver: Saver) -> None:
    while not saver.poll():
        pass


def test_a_failure_comes_out_on_every_rank_and_once(tmp_path):
    directory = tmp_path / "missing"

    def program(channel):
        saver = Saver(directory, channel)
        saver.save(snapshot(1, specs(channel.rank), 3))
        with pytest.raises(SaveError, match=r"missing: the checkpoint was not saved: .*No such file"):
            poll_until_done(saver)
        if channel.rank == 0:
            directory.mkdir()
        saver.save(snapshot(2, specs(channel.rank), 3))
        saver.close()
        return saver.poll()

    assert Threads(3).run(program) == [True, True, True]
    assert newest(directory, pytest.fail) == directory / "checkpoint-00000002.h5"


def test_a_program_that_fails_during_a_save_leaves_nothing_half_written(tmp_path):
    def broken(_):
        raise RuntimeError("device lost")

    saver = Saver(tmp_path, alone(), host=broken)
    with pytest.raises(RuntimeError, match="device lost"):
        saver.save(snapshot(1, specs()))
    with pytest.raises(SaveError, match="the program failed"):
        saver.close()
    assert list(tmp_path.iterdir()) == []


def test_a_file_for_inspection_is_none_to_resume_from(tmp_path):
    replicas = [specs(rank) for rank in range(2)]
    for vectors in replicas:
        vectors[0].vector[0] = np.nan

    def program(channel):
        saver = Saver(tmp_path, channel)
        saver.save(snapshot(1, replicas[channel.rank], 2))
        path = saver.inspection(snapshot(2, replicas[channel.rank], 2), merge=np.array([0.0, np.nan]))
        saver.close()
        return path

    path = tmp_path / "inspection-00000002.h5"
    assert Threads(2).run(program) == [path, path]
    assert newest(tmp_path, pytest.fail) == tmp_path / "checkpoint-00000001.h5"
    with Checkpoint(path) as file:
        assert (file.step, file.replicas) == (2, [0, 1])
        assert np.isnan(file.weights("hidden1/dense/weight")[0, 0])


def test_two_ranks_may_not_hold_the_same_replica(tmp_path):
    def program(channel):
        Saver(tmp_path, channel, replica=0).save(snapshot(1, specs()))

    with pytest.raises(ValueError, match="one rank each"):
        Threads(2).run(program)


def test_names_that_hdf5_would_split_are_refused(tmp_path):
    layout = Layout({"a/b": {"w": (2,)}}, "float32")
    with pytest.raises(ValueError, match="a/b"):
        Saver(tmp_path, alone()).save(snapshot(1, [VectorSpec("model/network", layout, filled(layout, 0))]))
