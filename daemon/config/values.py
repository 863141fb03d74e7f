"""Values of the file that are passed on as they are: to lists of models, and into requests."""

from __future__ import annotations

from daemon.config.yaml_source import Node, Scalar, Sequence

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]


def plain(node: Node) -> Json:
    """A tree as JSON has it."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Sequence):
        return [plain(item) for item in node.items]
    return {key: plain(item) for key, item in node.items.items()}
