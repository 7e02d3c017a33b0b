"""The bridge: a timm checkpoint becomes a TensorFlow SavedModel, and a proof that it is the same model.

run.py       the whole stage, top to bottom: export(...) -> the published bundle
bundle.py    the directory everybody shares: load, verify, seal, publish
parity.py    the arithmetic that gates everything (numpy, no framework)
torch_half/  checkpoint -> model.onnx + reference.npz    (a process that never imports TensorFlow)
tf_half/     model.onnx -> saved_model/, and its check   (processes that never import torch)
"""
