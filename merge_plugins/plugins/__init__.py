"""Register merge methods and statistics: the hooks, the facts, the registry."""

from merge_plugins.plugins.files import load_plugin, load_plugins
from merge_plugins.plugins.hookspecs import hookimpl
from merge_plugins.plugins.method import Method, Parameter
from merge_plugins.plugins.registry import Registry, registry

__all__ = ["Method", "Parameter", "Registry", "hookimpl", "load_plugin", "load_plugins", "registry"]
