"""What the leases of a shape need of a node, and whether any node could hold one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from executor_adapter.job import UNITS, Shape, amount_text, units_of

Amounts = Mapping[str, float]
"""Amounts by name, with memory in bytes."""


def amounts_of(shape: Shape) -> dict[str, float]:
    """Return the amounts of a shape; whole ones are whole numbers."""
    return {name: units // UNITS if units % UNITS == 0 else units / UNITS for name, units in shape}


def able_nodes(needs: Amounts, nodes: Mapping[str, Amounts]) -> list[str]:
    """Return the names of the nodes that could hold so much if nothing else ran there.

    `nodes`: what each has in all.
    """
    return [node for node, has in nodes.items() if all(has.get(name, 0) >= amount for name, amount in needs.items())]


def lack_in_words(needs: Amounts, nodes: Iterable[Amounts], node: str) -> str:
    """Return why none of the nodes could hold so much. `nodes`: what each has. `node`: what the engine calls one."""
    known = list(nodes)
    if not known:
        return f"the cluster has no {node}"
    for name, amount in needs.items():
        most = max(has.get(name, 0) for has in known)
        if most < amount:
            has = f"the most that one has is {amount_text(name, units_of(most))}" if most else f"none has {name}"
            return f"no {node} has {amount_text(name, units_of(amount))}: {has}"
    return f"no {node} has {', '.join(amount_text(name, units_of(each)) for name, each in needs.items())} together"
