"""The slow path: dataset, networks, train, gate, export, publish.

Importing this package, its settings and its dataset brings no torch in, so that workers never load it.
"""
