"""Scripts of the documentation and the examples, at sizes that a test has time for."""


def smaller(script: str, sizes: dict[str, str]) -> str:
    """A script with other sizes, each of which it must have."""
    for large, small in sizes.items():
        assert large in script
        script = script.replace(large, small)
    return script
