"""Decoding: rules, the cascade and the methods built on it."""
