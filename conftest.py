"""The examples of modules that need an optional package are left out where it is not installed."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("ray") else ["src/kinfold/engines/cluster/*.py"]
