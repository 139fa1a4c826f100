"""Will a run fit on a TPU pod, and how fast can it be? Answered by the TPU's compiler, without the pod.

`python -m jaxclip.plan --config=configs/vit_l14.py --topology=v5e:16x16`
"""
