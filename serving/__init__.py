"""TensorFlow Serving's API, embedded: the server, its client and its process wrapper.

Importing this package is cheap; tensorflow is imported when a model is loaded. Main path, in reading order:
`config` → `server` → `manager` (versions) → `savedmodel` (one loaded version) → `inference` (the calls) →
`grpc_edge` and `rest_edge` (the two wires).
"""
