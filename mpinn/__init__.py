"""Five ways to train neural networks in parallel, and their combinations, with NumPy/CuPy, MPI and HDF5."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from mpinn.analysis.saved import SavedModel

__version__ = "0.1.0"


def open(path: "str | Path", *, replica: int | None = None, best: bool = False) -> "SavedModel":
    """Open a checkpoint, or the newest (``best``: the best) one of a run directory, for reading; needs no MPI.

    ::

        import mpinn, numpy, pandas

        with mpinn.open("runs/digits") as saved:
            saved.configuration["consensus"]["score"]    # every key of the run
            saved.layers                                 # ["hidden1", "hidden2", "output"]
            saved.weights["hidden1/weight"]              # (64, 128), read when it is asked for
            pandas.DataFrame(saved.history)              # step, loss, validation_accuracy, ...
            images = numpy.load("images.npy")            # (B, 8, 8, 1), as in the data set: not normalised
            saved.predict(images).argmax(axis=1)         # (B,), from outputs (B, 10) before any softmax

    Images are channels-last. Where replicas differ the weights are their merged ones, or those of one ``replica``.
    Raises InputError for what is not a checkpoint.
    """
    from mpinn.analysis.saved import SavedModel

    return SavedModel(path, replica, best)
