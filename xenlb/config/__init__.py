"""The configuration file: YAML text to the settings of the model, every problem with its place.

The module watcher is not imported here: it loads watchdog.
"""

from xenlb.config.loader import LoadedConfig, load, load_bytes, load_config, parse
from xenlb.config.yaml_nodes import decode
from xenlb.model.problem import ConfigError

__all__ = ["ConfigError", "LoadedConfig", "decode", "load", "load_bytes", "load_config", "parse"]
