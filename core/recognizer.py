"""A small face recognition network, trained in a minute on the people of a data set.

It stands in for ArcFace where the pictures are synthetic: its features tell the people of such a
set apart, and say whether a rendering looks like a picture. It is shipped as code; ``python -m
callbacks.recognizer`` makes its file.

Only what is face counts: most pictures of the training show it before a backdrop of chance, with
other colours and other light, since in a video neither backdrop nor light tells its people apart as
a rendering can.
"""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from tqdm import tqdm

from core.errors import DataError

SIDE = 56  # pixels that the network sees of 112
FORMAT = "monoface recognizer 1"
TEMPERATURE = 0.1  # of the cosines
PEOPLE, VIEWS = 32, 2  # of a step
STEPS = 700
LEARNING_RATE, DECAY = 2e-3, 2e-2


class SmallRecognizer(nn.Sequential):
    """Aligned faces, RGB in [-1, 1], to embeddings that are not normalized: four 3x3 convolutions
    of stride 2 with BN and ReLU, and a linear layer with BN.

    Args:
        width: channels after the first layer; they double in each.
        dims: of the embedding.
    """

    def __init__(self, width: int = 32, dims: int = 128) -> None:
        self.settings = {"width": width, "dims": dims}
        layers: list[nn.Module] = [nn.AvgPool2d(112 // SIDE)]
        channels, side = 3, SIDE
        for factor in (1, 2, 4, 8):
            layers += [
                nn.Conv2d(channels, factor * width, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(factor * width),
                nn.ReLU(inplace=True),
            ]
            channels, side = factor * width, (side + 1) // 2
        last = nn.Linear(channels * side**2, dims)
        super().__init__(*layers, nn.Flatten(), last, nn.BatchNorm1d(dims))


def train_recognizer(
    faces: UInt8[Tensor, "n 3 112 112"],
    masks: UInt8[Tensor, "n 1 112 112"],
    people: Int[Tensor, " n"],
    steps: int = STEPS,
    seed: int = 0,
    progress: bool = True,
) -> SmallRecognizer:
    """Learns to tell people apart: of all pictures of a batch, the one whose embedding has the
    largest cosine with a person's picture shall be the same person's other one.

    Args:
        faces: aligned to the 112 template, RGB.
        masks: 255 where the face is seen.
        people: who it is, any numbers; who has one picture only is left out.
        steps: of Adam.
        seed: the same, on the same machine, gives the same network.
        progress: show a bar.

    Raises:
        DataError: there are not two people with two pictures each.
    """
    pictures = [(people == person).nonzero()[:, 0] for person in people.unique()]
    pictures = [rows for rows in pictures if len(rows) >= VIEWS]
    if len(pictures) < 2:
        raise DataError(
            f"a recognizer learns from people with at least {VIEWS} pictures each; of "
            f"{len(people.unique())} people {len(pictures)} have so many"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _train(faces, masks, pictures, steps, progress)


def _train(
    faces: Tensor, masks: Tensor, pictures: list[Tensor], steps: int, progress: bool
) -> SmallRecognizer:
    scale = 112 // SIDE
    small = F.avg_pool2d(torch.cat([faces, masks], 1).float() / 255, scale)
    network = SmallRecognizer().to(memory_format=torch.channels_last)
    body = nn.Sequential(*list(network)[1:])  # the pictures are small already
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=DECAY)
    count = min(PEOPLE, len(pictures))
    same = torch.arange(count).repeat_interleave(VIEWS)
    same_person = same[:, None] == same
    for step in tqdm(range(steps), "recognizer", unit="step", disable=not progress):
        rate = LEARNING_RATE * min(1, (step + 1) / 20) * (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        chosen = [pictures[k] for k in torch.randperm(len(pictures))[:count].tolist()]
        rows = torch.cat([p[torch.randperm(len(p))[:VIEWS]] for p in chosen])
        inputs = 2 * changed(small[rows]) - 1
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = body(inputs.contiguous(memory_format=torch.channels_last))
        loss = contrast(embeddings.float(), same_person)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def contrast(
    embeddings: Float[Tensor, "n d"], same_person: Bool[Tensor, "n n"]
) -> Float[Tensor, ""]:
    """The mean over all pairs of pictures (i, j) of one person of -log softmax_j(cosine_ij / t),
    i itself left out.
    """
    unit = F.normalize(embeddings, dim=-1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    cosines = (unit @ unit.T / TEMPERATURE).masked_fill(itself, -math.inf)
    pairs = same_person & ~itself
    return -cosines.log_softmax(-1)[pairs].mean()


def changed(pictures: Float[Tensor, "n 4 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Faces with other framing, colours and light, three quarters of them cut out by their mask
    (the fourth channel) and put before a backdrop of chance.
    """
    n, _, *size = pictures.shape

    def normal(*shape: int) -> Tensor:
        return torch.randn(n, *shape)

    frame = torch.eye(2, 3) * (1 + 0.05 * normal(1, 1))
    frame[:, 0, 1] += 0.05 * normal()
    frame[:, :, 2] += 0.04 * normal(2)
    grid = F.affine_grid(frame, [n, 4, *size], align_corners=False)
    moved = F.grid_sample(pictures, grid, align_corners=False)
    faces, mask = moved[:, :3].clamp(1e-3, 1), moved[:, 3:]
    exposure = 0.15 * normal(1, 1, 1) + 0.1 * normal(3, 1, 1)
    light = 0.15 * F.interpolate(normal(1, 5, 5), size, mode="bicubic")
    faces = faces ** (0.25 * normal(1, 1, 1)).exp() * (exposure + light).exp()
    waves = 0.3 * F.interpolate(normal(3, 4, 4), size, mode="bicubic")
    backdrop = torch.rand(n, 3, 1, 1) + waves * (torch.rand(n, 1, 1, 1) < 0.6)
    backdrop = backdrop * (torch.rand(n, 1, 1, 1) < 0.75)  # else black, as renderings have it
    mask = torch.where(torch.rand(n, 1, 1, 1) < 0.75, mask, 1.0)
    return (faces * mask + backdrop * (1 - mask)).clamp(0, 1)


def save_recognizer(network: SmallRecognizer, path: Path, trained_on: str) -> None:
    """Writes a file that ``core.perceptual.Recognizer`` reads.

    Args:
        network: trained.
        path: its folder is made; a file that is there is replaced at once.
        trained_on: in words, for the record.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    content = {"format": FORMAT, "settings": network.settings, "trained_on": trained_on}
    torch.save({**content, "state": network.state_dict()}, part)
    part.replace(path)


def small_recognizer_of(content: dict[str, Any]) -> SmallRecognizer:
    """The network of a file that ``save_recognizer`` wrote, as ``torch.load`` gives it."""
    network = SmallRecognizer(**content["settings"])
    network.load_state_dict(content["state"])
    return network
