"""The passes, in the order `optimize` runs them. Each takes a Graph and returns `(graph, changed)`."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from fpgasim.graph.passes.batch_norm_folding import fold_batch_norms
from fpgasim.graph.passes.constant_folding import fold_constants
from fpgasim.graph.passes.dead_node_removal import remove_dead_nodes
from fpgasim.graph.passes.identity_removal import remove_identities
from fpgasim.graph.passes.pad_folding import fold_pads
from fpgasim.graph.passes.recurrence_unrolling import unroll_recurrences
from fpgasim.graph.passes.shape_inference import infer_shapes
from fpgasim.graph.structure import Graph

Pass = Callable[[Graph], tuple[Graph, bool]]

#: Folding needs shapes, and makes more shapes known: `optimize` goes round until nothing changes.
PASSES: Mapping[str, Pass] = MappingProxyType(
    {
        "infer_shapes": infer_shapes,
        "unroll_recurrences": unroll_recurrences,
        "fold_constants": fold_constants,
        "remove_identities": remove_identities,
        "fold_pads": fold_pads,
        "fold_batch_norms": fold_batch_norms,
        "remove_dead_nodes": remove_dead_nodes,
    }
)


def optimize(graph: Graph, after_pass: Callable[[Graph, str], None] | None = None) -> Graph:
    """The graph with every pass applied until none finds anything more to do.

    `after_pass(graph, name)` is called after each pass that changed the graph; `verify` fits there. Every folding
    removes a node or makes a tensor constant, and a recurrence is unrolled once, so this ends.
    """
    changed = True
    while changed:
        changed = False
        for name, run in PASSES.items():
            graph, did = run(graph)
            if did and after_pass is not None:
                after_pass(graph, name)
            changed = changed or did
    return Graph(graph.model, optimized=True)
