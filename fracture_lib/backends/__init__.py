"""One module a framework; each is the only importer of its own and is imported when asked for.

Every backend has `load(folder)`, which returns a function from pixels, float32 [N, 1, 128, 128]
in 0..1, to logits, float32 [N, 10], and the feature map, float32 [N, C, h, w]. The two that train
also have a `Learner`; its protocol is described in `fracture_lib.training`.
"""
