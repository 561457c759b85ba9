"""The parts of the compiled plane that know no connection: header-only Cython, each tested and fuzzed by itself."""
