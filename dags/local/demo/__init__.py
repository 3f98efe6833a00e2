"""What `make demo` runs: the jobs of the teams on the local stack, and a report of their results.

`__main__` has the order of the parts; each part has a module of its own.
"""
