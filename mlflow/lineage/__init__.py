"""What serves now, where it came from, how to go back: lineage and registry on top of MLflow.

Import the module you need; nothing here imports MLflow before it is used:

- `files`, `source`: digests, atomic publishing, git state (standard library only; any part may use them)
- `tracking`: the MLflow store, runs, data sets and LoggedModels of a stage
- `registry`: versions, aliases, promotion, rollback; `history`: the log of every move
- `query`, `chain`, `verify`, `render`: from anything back to its commit and data, and is it still so?
"""
