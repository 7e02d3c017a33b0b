"""The TensorFlow half of the bridge: model.onnx in, a verified SavedModel out. No torch in this process.

lowering.py        the rungs; onnx2tf_rung.py (with prepare.py before it) and direct/
preprocessing.py   timm's evaluation transform; decoding.py and resampling.py below it
signatures.py      the five signatures; saving.py and warmup.py write them to disk
__main__.py        one job: lower and save;  verify.py: another process measures what is on disk
"""
