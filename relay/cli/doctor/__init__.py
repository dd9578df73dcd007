"""``relay doctor``: test a route hop by hop, and name the step that fails."""
