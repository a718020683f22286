r"""Raw videos made into shards of face crops: ``python -m datamodules prepare``.

    python -m datamodules prepare voxceleb --raw vox2 --out data/vox2 --every 10

What it does with each video: decode it; take the landmarks beside it (``<name>.npz``, see
``datamodules.landmark_files``), or detect faces and follow the one that is seen longest; drop faces
that are too small, too uncertain or mostly outside; cut out a square with a margin; find the pixels
of the face (``--mask``); write image, landmarks and mask into a tar file (``datamodules.shards``).
A mask that is the hull of the landmarks and nothing else is left to the reader, which makes it in
less time than it would take to decode. Whole videos are cut by VoxCeleb's own metadata, where they
are given, and the official test becomes a split: ``datamodules.preparation.metadata``.

``python -m datamodules prepare --help`` lists the options with their defaults.

What can be relied on:

* Whatever ends it (kill -9, a full disk, a lost node): run the same command again, and it goes on.
  The result is the same, byte for byte, as if nothing had happened.
* A video that cannot be read never stops it. ``report.json`` lists each of them with the reason,
  and how many frames were dropped for which reason. What can be decoded before a damage is kept.
  Decoder and detector have a process of their own beside each that writes: where a video makes it
  crash, twice, or hang for ``--patience`` seconds, that video is listed and the next one read.
* What is not a video's fault stops it, and of that shard nothing is kept: a model or a module that
  is missing, memory that is short, an error that nobody foresaw at every one of a shard's videos.
* The raw folder is only read. Videos that come to it later are not prepared: the list is made once
  and kept in ``plan.json``.

Who does it:

* This machine, one process for each core (``--jobs``).
* A SLURM array. The raw folder and the result are on a file system that all nodes see; the task
  that is finished last writes the index:

      #SBATCH --array=0-99 --cpus-per-task=4
      srun python -m datamodules prepare voxceleb --raw $RAW --out $OUT \
          --shard "$SLURM_ARRAY_TASK_ID/100" --jobs 4

  Tasks that failed are submitted again; if tasks ended at the same moment on a slow network file
  system and there is no index, run the command once more.
* A Ray cluster, ``--launcher ray``, that of RAY_ADDRESS (``pip install 'monoface[ray]'``). Shards
  of a lost node are done by the others.

How long it takes and how much it needs. With

    V videos of f frames each, of which every k-th is taken,
    D frames/s that a core decodes, P frames/s that it cuts, masks, encodes and writes,
    F faces/s that the detector finds, b bytes for a frame,

    core hours = V f (1 / D + 1 / (k P)) / 3600 x (2 for the decoding, if faces are detected)
    detector hours = V f / (k F) / 3600
    disk = V f b / k

VoxCeleb2 has 140,000 videos in its training part, cut into 1.1 million files of about 8 s: V f =
1.1e6 x 200 = 220 million frames. With D = 5000 (224 pixels, H.264, into RGB), P = 1400 and b = 17
kB (256 pixels, quality 95, ``--mask hull``; D, P and b were measured with a real speaker's video on
one core of a shared machine; measure yours: ``python -m benchmarks.speed data``):

    |                       | k = 1       | k = 10      | k = 125 (as many frames as FML takes)   |
    |-----------------------|-------------|-------------|-----------------------------------------|
    | frames                | 220 million | 22 million  | 1.8 million                             |
    | decoding, core hours  | 12          | 12          | 12                                      |
    | the rest, core hours  | 44          | 4.4         | 0.35                                    |
    | disk                  | 3.7 TB      | 370 GB      | 30 GB                                   |
    | detection, F = 10     | 6,100       | 610         | 49 core hours                           |
    | detection, F = 200    | 306         | 31          | 2.4 GPU hours                           |

The detector decides: 10 faces/s on a core and 200 on a GPU are assumptions. With k = 10 a hundred
cores need a quarter of an hour for all but the detection, and six hours with it; eight GPUs, four
hours for the detection. On GPUs install onnxruntime-gpu instead of onnxruntime, and start one task
for each GPU, with --jobs 2 to 4: a process that decodes leaves its GPU waiting. Tasks of Ray ask
for a core, not for a GPU, and Ray hides GPUs from them. One shard holds 64 of the 1.1 million
files: 17,200 shards of 22 MB with k = 10; ``--videos-per-shard 1000`` makes 1,100 of 340 MB, of
which a task that is killed loses at most one for each process.
"""
