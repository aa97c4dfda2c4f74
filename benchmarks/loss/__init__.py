"""What the loss costs: time and memory, against pytorch-metric-learning and against bisection.

Each part puts its rows into loss_DEVICE.json, after which loss_DEVICE.md and loss_DEVICE.png are
drawn from that file alone. Sizes not measured this time keep their rows if those are of the same
machine, versions and sources.

contrastive  forward and backward of the robust contrastive loss, dense and in tiles, against
             pytorch-metric-learning's SupConLoss, where there is one, on the same features
             (D = 128, 7 classes).
             Median time of interleaved runs in one process.
memory       peak memory of the tiled loss at D = 256.
ranks        the tiled loss on one of several ranks that share a batch of --rank-size samples,
             communication left out. Median time of interleaved runs in one process.
weights      exact χ² and KL-ball weights against 60 steps of bisection in float64.
positives    share of anchors with a positive at batch 8 on a long-tailed mix of classes, by size
             of the feature memory.

Every memory figure comes from a process of its own that has run once on a small batch: the rise of
its peak resident size (Linux), inputs excluded, their gradient included. One thread on the CPU. On
a GPU (--device cuda) it is the rise of the allocator's peak, in the same process; `weights` and
`positives` are computed on the CPU whatever the device.
"""
