"""The stand-in for cuBLASLt has the names, numbers, sizes and parameters that nvmath-python itself has."""

import importlib.util
import json
import subprocess
import sys

import pytest

from emulation.child import emulated

TELL = """
import inspect, json, sys
import numpy as np
from nvmath.bindings import cublasLt as lt

names = json.loads(sys.argv[1]) or {
    "enums": {kind: [*getattr(lt, kind).__members__] for kind in
              ("Epilogue", "ReductionScheme", "MatmulDescAttribute", "MatmulPreferenceAttribute")},
    "functions": [name for name, own in vars(lt).items()
                  if inspect.isfunction(own) and own.__module__ == lt.__name__ and own.__name__ not in ("live", "field")
                  and not name.startswith("_") and name not in ("dataclass", "refuse_in_capture")],
}
attributes = {"MatmulDescAttribute": lt.get_matmul_desc_attribute_dtype,
              "MatmulPreferenceAttribute": lt.get_matmul_preference_attribute_dtype}
results = lt.MatmulHeuristicResult(3)
told = {
    "enums": {kind: {name: int(getattr(lt, kind)[name]) for name in own} for kind, own in names["enums"].items()},
    "types": {kind: [np.dtype(get(getattr(lt, kind)[name])).str for name in names["enums"][kind]]
              for kind, get in attributes.items()},
    "functions": {name: [*inspect.signature(getattr(lt, name)).parameters] for name in names["functions"]},
    "results": [str(lt.matmul_algo_dtype), str(lt.matmul_heuristic_result_dtype), len(results), len(results.state),
                type(results.ptr).__name__, lt.cuBLASLtError.__mro__[1].__name__],
}
print(json.dumps([names, told]))
"""


@pytest.mark.skipif(importlib.util.find_spec("nvmath") is None, reason="nvmath-python is not installed")
def test_the_stand_in_has_what_the_package_has() -> None:
    here = emulated(["-c", TELL, "null"], 60)
    assert here.returncode == 0, here.stderr
    names, expected = json.loads(here.stdout)
    assert {"create", "matmul", "matmul_algo_get_heuristic", "matrix_layout_create"} <= {*names["functions"]}
    there = subprocess.run([sys.executable, "-c", TELL, json.dumps(names)], capture_output=True, text=True, timeout=60)
    assert there.returncode == 0, there.stderr
    assert json.loads(there.stdout)[1] == expected
