"""How a benchmark says that an entry failed, in a cell of its table."""


def one_line(error: Exception) -> str:
    """Name and message of an error, on one line and without what would end a cell."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}".replace("|", "/")
