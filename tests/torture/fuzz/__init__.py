"""Parsers under inputs that coverage finds: ``make fuzz``; the targets are in ``targets``, their seeds in ``seeds``."""
