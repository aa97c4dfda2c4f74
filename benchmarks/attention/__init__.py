"""What attention costs: alone, against a literal implementation, and behind a network's stages.

Each part puts its rows into attention_DEVICE.json; then the table attention_DEVICE.md and the plots
attention_DEVICE_*.png are made from that file alone.

modules    the module at the shapes behind X3D's stages, eager and compiled, in float32, bfloat16
           and channels_last_3d, against literal.py (the released order of operations), and in
           floors: the time of reading x twice and writing it once, measured beside it.
           Bytes kept for backward beyond x itself, as a share of x.
sweep      cost along batch, time, channels and side.
counts     launches of the GPU's kernels and the bytes of their tensors, on any machine with Triton.
backbones  X3D-S, r3d_18, resnet18 and ViT-S (frames folded into the batch) at 16×112²: bare, with
           ours, and with a literal version, SE, CBAM, ECA (timm's), a non-local block and a
           temporal shift behind the same stages. --backbones picks some, so that pieces can be run
           apart; rows that are not measured again are kept. The non-local block is timed with
           the bare network alone: it fills gigabytes, and slowed what ran next to it.
import     time of `import hdf_modules` beyond `import torch`.

Medians of interleaved runs in one process, which keeps the memory it frees (glibc's mallopt), so
that no case pays for pages that another returned. `modules` and `sweep` go through so many copies
of x that none is in a cache, and do not count the first of a case's four calls in a round. Ratios
are medians over rounds of the ratio within a round. Runs in which the interquartile range of the
first case is more than --spread of its median are repeated twice, then refused. On a processor: two
threads unless --threads says otherwise. On a GPU (--device cuda, which also takes --batch):
compiled means CUDA graphs (mode="reduce-overhead"), reference the same module without its kernels
(HDF_KERNELS=reference), captured CUDA graphs of the eager module with its kernels, one for each
copy of x, and such are those of the floor.
"""
