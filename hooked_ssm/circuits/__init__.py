"""Circuits: few edges, from hook to hook and position to position, that do what the model does.

    circuit = find_circuit(model, task)
    circuit                                  # in a notebook: a drawing
    circuit.edges()                          # a table
    circuit.test()                           # faithfulness, completeness and accuracy on fresh documents
    circuit.minimality()                     # what leaving out each edge costs
    circuit.save("circuit.json"), circuit.save("circuit.html")

An edge outside the circuit is ablated by itself: its reader gets the corrupted run's value (or a mean, or
zeros) of its writer, and no other reader does.
"""

from hooked_ssm.circuits.circuit import Circuit
from hooked_ssm.circuits.edges import circuit_graph
from hooked_ssm.circuits.find import find_circuit

__all__ = ["Circuit", "circuit_graph", "find_circuit"]
