"""Pictures of a grid."""


def draw(grid, runner, options, bench, title: str) -> None:
    """Later."""
