"""Builds the one extension, relay._fastpath; everything else is stated in pyproject.toml."""

import os

from Cython.Build import cythonize
from Cython.Compiler import Options
from setuptools import Extension, setup

Options.warning_errors = True

DEBUG = os.environ.get("RELAY_DEBUG") == "1"

setup(
    ext_modules=cythonize(
        [
            Extension(
                "relay._fastpath",
                ["relay/_fastpath.pyx"],
                extra_compile_args=["-O0" if DEBUG else "-O2", "-g", "-Wall", "-Wextra", "-Werror"],
            )
        ],
        compiler_directives={
            "language_level": "3",
            "boundscheck": DEBUG,
            "wraparound": False,
            "embedsignature": False,
            "warn.undeclared": False,
            "warn.unused": True,
            "warn.unused_result": True,
        },
        build_dir="build/cython",
        show_all_warnings=True,
    )
)
