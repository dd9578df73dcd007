"""What loads them: public tools, and programs of our own."""
