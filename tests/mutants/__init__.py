"""Mutants of relay's modules: small changes of the code that the tests must notice."""
