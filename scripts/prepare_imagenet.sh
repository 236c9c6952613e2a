#!/usr/bin/env bash
# Turn the official ILSVRC-2012 archives into train/<wnid>/ and val/<wnid>/:
#   scripts/prepare_imagenet.sh <folder with the three archives> <new folder>
# Killed, it goes on where it stopped when started again. PYTHON=... names another interpreter.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-$here/../.venv/bin/python}"
[[ -n "$(command -v "$python")" ]] || { echo "no $python: run 'make setup', or set PYTHON=<python with scipy>" >&2; exit 1; }
exec "$python" "$here/prepare_imagenet.py" "$@"
