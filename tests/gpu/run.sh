#!/bin/bash
# Check and measure everything on a machine with a GPU: bash tests/gpu/run.sh [--quick]; see --help.
cd "$(dirname "$0")/../.." && exec "${PYTHON:-python3}" tests/gpu/run.py "$@"
