"""A probe: what its score is made of, its file, the resampling rule, when candidates are dropped.

Needs numpy and safetensors, and no torch.
"""
