"""The engine that goes beyond one machine, on Ray."""

from kinfold.engines.cluster.engine import Cluster as Cluster
