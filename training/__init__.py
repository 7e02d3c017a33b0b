"""Train any timm model on a folder of images, and leave a checkpoint that names its data, recipe and
commit.

Read in this order: `config` (what a recipe may say), `data` (images on disk), `train` (the path, top to
bottom), `loop` (one epoch), `checkpoint` (what is left behind)."""
