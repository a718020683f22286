"""Which frames of a clip are read together: at random, by head pose, by light, or all.

A choice is a function of the clip and of the random numbers it is given. It says in which order
frames are tried; the reader takes the first ones that are usable, so that bad frames are replaced.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np

from datamodules.clips import Clip, MergedClip

Places = list[Iterable[int]]
"""For each frame wanted, the frames of the clip that may take its place, best first."""


class Choice(ABC):
    """How the frames of a clip are chosen.

    Attributes:
        multi_view: the frames show one face at one instant, from different sides.
        repeats: frames come several times where a clip has too few usable ones.
    """

    multi_view: ClassVar[bool] = False
    repeats: ClassVar[bool] = True

    @abstractmethod
    def attempts(self, clip: Clip, frames: int, random: np.random.Generator) -> Iterator[Places]:
        """What to read, best first: the first attempt whose places can all be filled is taken.

        Args:
            clip: to choose from.
            frames: how many are wanted.
            random: the only source of chance.
        """

    def clips(self, clips: Sequence[Clip], frames: int) -> Sequence[Clip]:
        """The clips to choose from, if not those of the dataset.

        Args:
            clips: of the dataset.
            frames: how many are wanted of each.
        """
        return clips

    def problem(self, frames: int, clips_per_batch: int) -> str:
        """What is wrong with so many frames, or clips in a batch; empty if nothing is."""
        return ""

    def in_evaluation(self) -> "Choice":
        """The choice for validation and test."""
        return self


class Spread(Choice):
    """Frames evenly spread over the clip, in their order; nothing is left to chance."""

    def attempts(self, clip: Clip, frames: int, random: np.random.Generator) -> Iterator[Places]:
        """One attempt: the middles of equal parts."""
        time = np.arange(len(clip.frames))
        middles = (np.arange(frames) + 0.5) * len(time) / frames - 0.5
        yield [_nearest(time, middle) for middle in middles]


class Random(Choice):
    """Different frames at random (CEST, Sec. 4.1)."""

    def attempts(self, clip: Clip, frames: int, random: np.random.Generator) -> Iterator[Places]:
        """One attempt: each place takes the next of a random order."""
        yield [random.permutation(len(clip.frames)).tolist()] * frames

    def in_evaluation(self) -> Choice:
        """Evenly spread."""
        return Spread()


class Diverse(Choice):
    """Frames of diverse head pose (FML, Sec. 3: "sufficient diversity in head pose").

    The clip's range of yaw is cut into equal parts, one for each frame; a yaw is drawn in each, and
    the frame nearest to it is taken. Where the yaw is not known, the same is done with time.
    """

    def attempts(self, clip: Clip, frames: int, random: np.random.Generator) -> Iterator[Places]:
        """One attempt, in random order."""
        values = _yaw_or_time(clip)
        low, high = np.nanmin(values), np.nanmax(values)
        parts = random.permutation(frames) + random.random(frames)
        yield [_nearest(values, low + part * (high - low) / frames) for part in parts]

    def in_evaluation(self) -> Choice:
        """Evenly spread."""
        return Spread()


class EvenYaw(Choice):
    """Frames of a person evenly spread in yaw, from all their clips (Deng et al., Sec. 4).

    Of frames with the same yaw one is taken at random. Where no yaw is known, the frames are spread
    over the clips.
    """

    def clips(self, clips: Sequence[Clip], frames: int) -> Sequence[Clip]:
        """The clips of each person as one."""
        people: dict[str, list[Clip]] = {}
        for clip in clips:
            people.setdefault(clip.identity, []).append(clip)
        return [MergedClip.of(parts) for parts in people.values()]

    def attempts(self, clip: Clip, frames: int, random: np.random.Generator) -> Iterator[Places]:
        """One attempt, in the order of yaw."""
        values = _yaw_or_time(clip)
        order = random.permutation(len(values))
        wanted = np.linspace(np.nanmin(values), np.nanmax(values), frames)
        yield [order[_nearest(values[order], value)] for value in wanted]


class Views(Choice):
    """Neighbouring views of one instant, in the order of yaw, the target in the middle (MGCNet).

    All have the same light. Clips without so many views of one light are left out. Of videos, whose
    heads' yaw is not known, it is estimated from the landmarks (``datamodules.yaw``).

    Args:
        apart: neighbouring views differ in yaw by at least so many degrees, and as little more as
            there is. Ours: a little less than the steps of 300W-LP, 5; those of Multi-PIE are 15.
        within: all views are at most so many places of the clip before or after the target, so that
            a talking face in a video has hardly changed; None = the clip shows one instant. Frames
            on both sides of dropped ones are neighbours, and so are those on both sides of a cut
            where a clip is a whole video (``whole_video``).
    """

    multi_view = True

    def __init__(self, apart: float = 4.0, within: int | None = None) -> None:
        self.apart, self.within = apart, within

    def problem(self, frames: int, clips_per_batch: int) -> str:
        """There is no middle."""
        if frames >= 3 and frames % 2:
            return ""
        return f"{frames} frames per clip; wanted 3, or 5, 7, ..., so that one is in the middle"

    def clips(self, clips: Sequence[Clip], frames: int) -> Sequence[Clip]:
        """Those with enough views."""
        return [clip for clip in clips if any(len(g) for g in self._groups(clip, frames))]

    def attempts(self, clip: Clip, frames: int, random: np.random.Generator) -> Iterator[Places]:
        """All sets of views, in random order."""
        groups = np.concatenate(list(self._groups(clip, frames)))
        for views in random.permutation(groups).tolist():
            yield [[view] for view in views]

    def _groups(self, clip: Clip, frames: int) -> Iterator[np.ndarray]:
        """For each light the sets of views, (sets, frames)."""
        if clip.yaw is None:
            return
        known = np.flatnonzero(np.isfinite(clip.yaw))
        light = np.zeros(len(clip.frames), int) if clip.light is None else clip.light
        for lamp in np.unique(light[known]):
            members = known[light[known] == lamp]
            yield self._sets(members, clip.yaw[members], frames)

    def _sets(self, members: np.ndarray, yaw: np.ndarray, frames: int) -> np.ndarray:
        """The sets of views among frames of one light, (sets, frames).

        Args:
            members: their numbers, in their order.
            yaw: theirs.
            frames: in a set.
        """
        if self.within is None:
            return members[self._neighbours(yaw, frames)]
        # for each frame as the target a row with the others that are near enough in time
        count = len(members)
        reach = min(self.within, count - 1)
        others = np.arange(count)[:, None] + np.arange(-reach, reach + 1)
        near = (others >= 0) & (others < count)
        others = others.clip(0, count - 1)
        near &= np.abs(members[others] - members[:, None]) <= self.within
        turned = np.where(near, yaw[others], np.nan)
        views, complete = [np.arange(count)], np.ones(count, bool)
        for side in (-1, 1):  # of the target
            last = yaw
            for _ in range(frames // 2):
                beyond = side * (turned - last[:, None])
                beyond = np.where(beyond >= self.apart, beyond, np.inf)  # also where NaN
                complete &= np.isfinite(beyond.min(1))
                found = np.take_along_axis(others, beyond.argmin(1)[:, None], 1)[:, 0]
                last = yaw[found]
                views = [found, *views] if side < 0 else [*views, found]
        return members[np.stack(views, 1)[complete]]

    def _neighbours(self, yaw: np.ndarray, frames: int) -> np.ndarray:
        """The sets of views where time does not count, (sets, frames), in the order of targets."""
        order = np.argsort(yaw, kind="stable")
        ranked, none = yaw[order], len(yaw)
        # of each rank the neighbours; the last entry, also reached by -1, stands for none
        after = np.append(np.searchsorted(ranked, ranked + self.apart), none)
        before = np.append(np.searchsorted(ranked, ranked - self.apart, "right") - 1, none)
        views = np.argsort(order)[:, None]
        for _ in range(frames // 2):
            views = np.hstack([before[views[:, :1]], views, after[views[:, -1:]]])
            views[views == -1] = none
        return order[views[(views < none).all(1)]]


class Lights(Choice):
    """Frames of one camera and one instant under different lights (PGN, on Multi-PIE).

    Clips in which no camera saw two lights are left out; the yaw tells the cameras apart.
    """

    def clips(self, clips: Sequence[Clip], frames: int) -> Sequence[Clip]:
        """Those with several lights."""
        return [clip for clip in clips if self._cameras(clip)]

    def attempts(self, clip: Clip, frames: int, random: np.random.Generator) -> Iterator[Places]:
        """The cameras in random order; of each, lights at random."""
        cameras = self._cameras(clip)
        for camera in random.permutation(len(cameras)):
            yield [random.permutation(cameras[camera]).tolist()] * frames

    def _cameras(self, clip: Clip) -> list[np.ndarray]:
        """The frames of each camera that saw several lights, one of each light."""
        if clip.light is None or clip.yaw is None:
            return []
        cameras = (np.flatnonzero(clip.yaw == yaw) for yaw in np.unique(clip.yaw))
        one_each = [
            camera[np.unique(clip.light[camera], return_index=True)[1]] for camera in cameras
        ]
        return [frames for frames in one_each if len(frames) > 1]


class Whole(Choice):
    """The whole clip in its order, without its bad frames; ``frames_per_clip`` does not count.

    Args:
        every: take only every so many-th frame.
    """

    repeats = False

    def __init__(self, every: int = 1) -> None:
        self.every = every

    def problem(self, frames: int, clips_per_batch: int) -> str:
        """Clips of different lengths would have to make a batch."""
        if clips_per_batch == 1:
            return ""
        return f"{clips_per_batch} clips per batch; wanted 1, since clips differ in length"

    def attempts(self, clip: Clip, frames: int, random: np.random.Generator) -> Iterator[Places]:
        """One attempt; no frame takes another one's place."""
        yield [[index] for index in range(0, len(clip.frames), self.every)]


def _yaw_or_time(clip: Clip) -> np.ndarray:
    """The yaw of each frame, NaN where unknown; the frames' numbers if it is unknown throughout."""
    if clip.yaw is None or np.isnan(clip.yaw).all():
        return np.arange(len(clip.frames))
    return clip.yaw


def _nearest(values: np.ndarray, wanted: float) -> np.ndarray:
    """Where the values are, the nearest one first, NaN last."""
    return np.argsort(np.abs(values - wanted), kind="stable")
