"""Files of results: circuit.json and the others of acdc, formats of other tools, published circuits, tables."""
