"""What SAM costs: time of a training step, against two plain passes and pytorch_optimizer's SAM.

plain  one forward and backward pass and a step of AdamW
twice  two forward and backward passes and a step: what any SAM has to pay
peer   pytorch_optimizer's SAM around AdamW, by closures as its documentation shows, where there is
       one
sam    this library's SAM around AdamW, with the model given: BatchNorm statistics are frozen and
       random states replayed in the second pass, which the peer does not do

The part `waits` counts, on any device, how often the host would wait for the device in a step of
the loss, alone and inside SAM: values that Python reads, and shapes that depend on values.

Every method trains its own copy of the model on the same batch. In each round every method takes
one step, in an order that rotates. ``ms`` is the median over the rounds, and a ratio is the median
of the rounds' ratios, so that a slow spell of the machine falls on both sides. One thread on the
CPU. Results go to sam_DEVICE.json, where models not measured this time keep their rows if those are
of the same machine, versions and sources; sam_DEVICE.md and sam_DEVICE.png are drawn from it.
"""
