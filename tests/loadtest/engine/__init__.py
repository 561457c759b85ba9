"""The packet engine. ``_parts`` shows its header-only parts to Python, and is built before the tests are collected."""

from tests.support.compiled import folder_of

__path__.append(folder_of("tests.loadtest.engine._parts"))
