"""Hostile input: what decodes messages and files is run on everything that a fuzzer can think of."""
