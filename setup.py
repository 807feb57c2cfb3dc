"""Puts configs/ and eval_suites/ into the wheel as mmkd/_share/; everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithShare(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:  # a checkout reads the folders where they are
            return
        for folder in ("configs", "eval_suites"):
            target = Path(self.build_lib, "mmkd", "_share", folder)
            shutil.copytree(Path(__file__).parent / folder, target, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithShare})
