"""The configuration file: YAML text → the model's settings, every problem with its place.

watcher.py, which tells of changes of the file, is imported by who needs it: it loads watchdog.
"""

from xenlb.config.loader import Loaded, load, loaded, parse, read
from xenlb.config.yaml_nodes import decode
from xenlb.model.problem import ConfigError

__all__ = ["ConfigError", "Loaded", "decode", "load", "loaded", "parse", "read"]
