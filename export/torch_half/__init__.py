"""The torch half of the bridge: checkpoint in, `model.onnx` and `reference.npz` out.

python -m isthmus.export.torch_half <job folder>      # request.json in, result.json or error.json out
"""
