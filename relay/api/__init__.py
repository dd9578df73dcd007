"""The functions and classes that users call, put together from everything below."""
