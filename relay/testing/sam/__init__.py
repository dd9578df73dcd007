"""The parts of the embedded SAM bridge."""
