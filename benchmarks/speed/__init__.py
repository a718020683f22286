"""How fast the stages of rendering, the training steps and the readers are, as ratios.

    python -m benchmarks.speed render     # each stage, each backend
    python -m benchmarks.speed step       # training steps, against the networks alone
    python -m benchmarks.speed data       # reading, decoding, cropping
    python -m benchmarks.speed index      # the first batch of a large set of shards
    python -m benchmarks.speed gpu        # the tests that need a GPU, then all of the above on it

**Method**: what is compared is built first, then run in turn, round after round, in one process;
figures are medians over the rounds and interquartile ranges (IQR), in milliseconds per image. Each
sample repeats its work until it takes 4 ms, after a pause and 20 ms of the same work that are not
timed: they wake the threads. On other days and machines the times differ; the
*ratios* in a table are what to trust.

**Scene**: the face region of the procedural face model, its longest edges halved until it has the
wanted number of triangles ("coarse": 13,120, "dense": 73,840, about as the 35,709 vertices of
BFM's face), 193 of 224 pixels high, seen by Deng's camera (focal length 1015 px at 224), turned by
up to 10 degrees. "dense" at 224 pixels has 2-3 triangles a pixel.

**Keys** of the JSON file: ``<stage>/<mesh>/<size>/<batch>/<backend>/<threads>``, with the median in
milliseconds per image. Stages that draw nothing have the size "any"; the backend "torch" is plain
torch operations, for comparison; what runs on a GPU has "cuda" in the place of the threads. Two
more entries: "about" (machine, versions, commit) and "iqr" (by the same keys).
"""
