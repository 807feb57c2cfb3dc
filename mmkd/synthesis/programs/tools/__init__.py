"""The tools that programs are written with. Each is a plug-in under the entry point `mmkd.tools`."""

from mmkd.synthesis.programs.tools.base import Tool, tool
from mmkd.synthesis.programs.tools.registry import Toolset, installed
from mmkd.synthesis.programs.tools.view import View

__all__ = ["Tool", "Toolset", "View", "installed", "tool"]
