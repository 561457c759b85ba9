"""Builds the extensions; everything else is stated in pyproject.toml."""

import os

from Cython.Build import cythonize
from Cython.Compiler import Options
from setuptools import Extension, setup

Options.warning_errors = True

# Each has the path of its source as its name, and may use the leaves of the compiled plane.
MODULES = [
    "relay._fastpath",
    "relay.emulator.sfu._fanout",
    "relay.emulator.turn._native",
    "loadtest.engine._engine",
]
# The fuzz tests build a module of their own, just as these are built.
if "RELAY_MODULE" in os.environ:
    MODULES = [os.environ["RELAY_MODULE"]]
# Counts live objects. Sanitizers want frames that they can name.
DEBUG = os.environ.get("RELAY_DEBUG") == "1"
SANITIZE = os.environ.get("RELAY_SANITIZE") == "1"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
OPTIMIZE = "-O1" if SANITIZE else "-O0" if DEBUG else "-O2"

setup(
    ext_modules=cythonize(
        [
            Extension(
                module,
                [module.replace(".", "/") + ".pyx"],
                define_macros=[("RELAY_DEBUG", "1")] if DEBUG else [],
                libraries=["ssl", "crypto"],
                extra_compile_args=[OPTIMIZE, "-g", "-Wall", "-Wextra", "-Werror", *(SANITIZERS if SANITIZE else [])],
                extra_link_args=SANITIZERS if SANITIZE else [],
            )
            for module in MODULES
        ],
        compiler_directives={
            "language_level": "3",
            "boundscheck": DEBUG,
            "wraparound": False,
            "embedsignature": False,
            "warn.undeclared": False,
            "annotation_typing": False,
            "cdivision": True,
        },
        build_dir="build/cython",
        show_all_warnings=True,
    )
)
