"""Builds the native extension with CMake; everything else is in pyproject.toml."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
CUDA_CHOICES = ("auto", "0", "1")


class CMakeBuild(build_ext):
    """Builds pearl_kernels._C. PEARL_CUDA=0 leaves CUDA out, =1 requires nvcc, =auto (default) takes it if found."""

    def build_extension(self, ext: Extension) -> None:
        cuda = os.environ.get("PEARL_CUDA", "auto")
        if cuda not in CUDA_CHOICES:
            raise ValueError(f"PEARL_CUDA must be one of {', '.join(CUDA_CHOICES)}, got {cuda!r}")
        output_dir = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        # Not build_temp: that is a fresh folder in every editable install, so each would compile all again.
        build_dir = ROOT / "build" / f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        build_dir.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            f"-S{ROOT}",
            f"-B{build_dir}",
            "-GNinja",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output_dir}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPEARL_CUDA={cuda}",
            f"-DPEARL_VERSION={self.distribution.get_version()}",
            # An isolated build's ninja is gone by the next build, so the cached path must be looked up afresh.
            "-UCMAKE_MAKE_PROGRAM",
            *os.environ.get("CMAKE_ARGS", "").split(),
        ]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build_dir)], check=True)


setup(ext_modules=[Extension("pearl_kernels._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
