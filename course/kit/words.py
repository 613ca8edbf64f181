"""Numbers in sentences."""


def counted(number: int, noun: str) -> str:
    """As in "1 check" and "0 checks"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
