"""Memory and speed estimates of a run on a TPU pod, by the TPU's compiler and without the pod.

`python -m jaxclip.plan --config=configs/vit_l14.py --topology=v5e:16x16`
"""
