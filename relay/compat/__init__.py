"""Names that other libraries taught people, on top of relay."""
