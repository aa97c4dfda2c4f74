"""Whether it helps under heterogeneity: an ablation on clips of several sources.

    python -m benchmarks evidence run cpu        # drawn faces; under 90 minutes on 2 cores; resumes
    python -m benchmarks evidence run faces      # real faces in motion at 32²: a day on 2 cores
    python -m benchmarks evidence run faces-48   # the same at 48²; --device cuda: on a GPU
    python -m benchmarks evidence run cpu-weights  # drawn faces, gradient through w or not
    python -m benchmarks evidence run gpu        # r3d_18 at 112², one GPU
    python -m benchmarks evidence run digits --root DIR  # recordings of digits; seconds a run
    python -m benchmarks evidence gates faces    # do the gates look at the clip?
    python -m benchmarks evidence search cpu     # hyper-parameters, on validation alone
    python -m benchmarks evidence report cpu     # evidence_cpu.json, table and plots from the runs

What is trained. Each row of the table changes one thing of the baseline: cross-entropy under AdamW
with one learning-rate cycle, from random weights. There are few clips and enough epochs that the
baseline knows nearly all its training clips and far fewer of a new source, as on the recordings
that the method is for; where a network does not fit yet, whatever slows fitting loses, and says
nothing of generalization. All rows of a seed have the same initial weights, clips, order of the
clips, epochs, batches and learning rate, and the last epoch counts; SAM takes two passes per step,
so ``ce-long`` has twice the epochs. Run i of a row has seed i and leaves out source i modulo six:
five runs of every row, and twelve, two for every source, of the baseline and of the whole method,
whose difference is the main result. Training clips have DFEW's long-tailed mix of classes; every
source has its own people and performances.

Real faces are the clips of examples.train.data.dynamics: real photographs of real people,
interpolated motion, simulated sources. Five classes of motion, four sources, one left out at a
time; another seed has other people in every source and split, so all of the source left out is
unseen. Rows and their order are in faces.json and, at 48², in faces-48.json; of drawn faces in
rows.json and weights.json. "Twice the epochs" is one cycle of that length, not a continued run.
"Worst people" is the least UAR of the source left out over the groups that people stated, "epochs
to 50%" how long the first plateau lasts on training clips.

Digits are the recordings of examples.train.data.digits, which ``--root`` names (the Free Spoken
Digit Dataset, CC BY-SA 4.0, is not part of the repository): real signals of six speakers, one left
out at a time, in the rows of faces.json. Another seed has other recordings in the splits. Speech,
not faces; training spectrograms are neither mirrored nor moved, and none are corrupted.

What is measured, on clips of people nobody trained on (of digits, on other recordings of the seen
speakers), as many of each class:

- seen: the five sources of the training;
- unseen: the source left out;
- corrupted: clips of the seen sources under ten corruptions at five severities, none of which is
  an augmentation of the training. "Corruption loss" is the clean UAR less the mean of the fifty.

UAR is the mean recall of the classes, WAR the mean weighted by DFEW's mix. "Worst source" is the
least UAR of the six sources, "worst class" the least recall on the source left out. Differences
are paired by seed and source left out, with 95% bootstrap intervals.

Hyper-parameters. ``search`` runs candidates.json and prints them by their paired gain in UAR on
validation clips: half from the seen sources, half from two styles, night and television, that are
neither trained nor tested on. It measures no test clip. What was chosen is in rows.json; budgets
are in presets.json.

Gates. ``gates`` trains attention alone, as it is and with the ways of gates.json in which a clip
might get into the temporal gate, then measures over test clips, for every attached module and both
gates: the share of the gate's variance that the frame's index or the position explains, the clip,
both; whether the gate of a clip that is played backwards, begins later or is mirrored is the gate
changed alike or the gate as it was; how much UAR is lost where a gate's mean over the clips
replaces it. ``gates PRESET --limit 0`` writes the tables again. A variant would be chosen on
validation clips of seen sources. The preset faces-short is faces at half the epochs.

Resuming. Every finished run is one JSON file in a folder of its preset among the results, named by
row, source left out, seed and a digest of the whole configuration; what is there is not run again,
so runs that are committed are shared. The report says where the runs that it compares differ in
machine, versions or sources. Several machines share the work by ``--shard 1/3`` and so on; then
bring the files into one folder.
"""
