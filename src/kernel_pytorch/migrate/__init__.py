"""Rewriting old module paths and names in source files. Needs libcst, which only the command loads."""
