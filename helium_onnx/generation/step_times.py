"""How long a decode step takes, by the number of tokens in it."""

from __future__ import annotations

#: Share of a new measurement in a mean, once there are some.
_WEIGHT = 0.1
#: Measurements of which the least counts: the first may wait for the session to load.
_FIRST = 3
#: A measurement counts as this many times what was expected at most: above, the machine did something else.
_OUTLIER = 1.5
#: Of the mean with interruptions. One measurement counts as so many times the typical one at most: a laptop that was
#: asleep for an hour was not decoding.
_MEAN_WEIGHT, _ABSENCE = 0.02, 100.0
#: Steps after which what was measured for a width is forgotten, if it was not measured again: a disturbed measurement
#: would otherwise keep its width from being used, and so from being measured, for ever.
_LIFETIME = 200
#: What another token in a step costs, in plain steps, until a step of several tokens was measured.
_FIRST_SLOPE = 0.4
#: Beyond the widest step that was measured, the slope up to it counts by so much: kernels for several rows cost a jump
#: at two, and little for each one more. Who never tries does not learn it.
_OPTIMISM = 0.5
#: A change of a plain step's time that is worth a new table: making one takes 15 us between two steps.
_NOTICED = 0.02


class TypicalSeconds:
    """What something takes that is done again and again, on a machine that does other things too."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """The least of the first three measurements, then a mean in which interruptions count little: what to expect
        of the next time. 0 before the first.
        """
        self.mean = 0.0
        """The mean with all interruptions: what many times take."""
        self.count = 0

    def observe(self, seconds: float) -> None:
        """It took ``seconds`` this time."""
        if self.count < _FIRST:
            self.seconds = self.mean = min(seconds, self.seconds) if self.count else seconds
        else:
            self.seconds += _WEIGHT * (min(seconds, _OUTLIER * self.seconds) - self.seconds)
            self.mean += _MEAN_WEIGHT * (min(seconds, _ABSENCE * self.seconds) - self.mean)
        self.count += 1


class Interruptions:
    """How much longer steps take in the long run than they typically do, since the machine does other things too.

    It is counted for steps with drafts alone: a draft model's threads may be what interrupts.
    """

    def __init__(self) -> None:
        self._actual = self._typical = 0.0

    def observe(self, actual: float, typical: float, plain: TypicalSeconds) -> float:
        """A step took ``actual`` seconds instead of ``typical``; returns actual over typical, in the long run.

        Before the first, steps with drafts are believed to suffer what plain ones do.
        """
        if not self._typical:
            self._actual, self._typical = plain.mean, plain.seconds
        self._actual += _MEAN_WEIGHT * (min(actual, _ABSENCE * typical) - self._actual)
        self._typical += _MEAN_WEIGHT * (typical - self._typical)
        return self._actual / self._typical


class StepTimes:
    """Means of measured seconds by width (tokens in a step: 1 is plain decoding), and what they say of other widths."""

    def __init__(self, widest: int) -> None:
        self.plain = TypicalSeconds()
        self._widest = widest
        self._table: list[float] | None = None  # of all widths, while nothing new is measured
        self._least_rate: float | None = None  # of the table
        self._means: dict[int, float] = {}  # of widths from 2
        self._counts: dict[int, int] = {}
        self._seen: dict[int, int] = {}
        self._steps = 0

    @property
    def known(self) -> bool:
        """Whether enough plain steps were measured."""
        return self.plain.count >= _FIRST

    def observe(self, width: int, seconds: float) -> None:
        """A step of ``width`` tokens took ``seconds``."""
        self._steps += 1
        if self._seen and self._steps % 32 == 0:
            for old in [width for width, seen in self._seen.items() if self._steps - seen > _LIFETIME]:
                for table in (self._means, self._counts, self._seen):
                    table.pop(old, None)  # an interruption may have come between two of them
            self._table = None
        if width == 1:
            self.plain.observe(seconds)
            if self._table is not None and abs(self.plain.seconds - self._table[1]) > _NOTICED * self._table[1]:
                self._table = None
            return
        count = self._counts.get(width, 0)
        weight = max(_WEIGHT, 1 / (count + 1))
        seconds = min(seconds, _OUTLIER * self.estimate(width))
        self._means[width] = (1 - weight) * self._means.get(width, 0.0) + weight * seconds
        self._counts[width] = count + 1
        self._seen[width] = self._steps
        self._table = None

    def estimate(self, width: int) -> float:
        """Seconds of a step of ``width`` tokens; at least one plain step must have been measured."""
        return self.estimates()[width]

    def estimates(self) -> list[float]:
        """Those of each width; the first is of none.

        Between measured widths along a straight line, and beyond them along a flatter one than up to there.
        """
        if self._table is None:
            plain = last = self.plain.seconds
            table = [0.0, plain]
            for width in sorted(self._means):
                mean, begin = self._means[width], len(table) - 1
                step = (mean - last) / (width - begin)
                table.extend(last + step * further for further in range(1, width - begin))
                table.append(mean)
                last = mean
            slope = _OPTIMISM * (last - plain) / (len(table) - 2) if self._means else _FIRST_SLOPE * plain
            slope = max(slope, 0.0)
            table.extend(last + slope * further for further in range(1, self._widest + 2 - len(table)))
            self._table, self._least_rate = table, None
        return self._table

    def least_rate(self, gain: float) -> float:
        """Where a first drafted token is accepted more rarely, no draft is ``gain`` times as fast as plain steps.

        Of the most that a draft of each length could give: all its other tokens would be right.
        """
        table = self.estimates()
        if self._least_rate is None:
            wanted = [gain * seconds / table[1] - 1 for seconds in table[2:]]
            self._least_rate = min(tokens / length for length, tokens in enumerate(wanted, 1))
        return self._least_rate

    def own_share(self, width: int, seconds: float, expected: float) -> float:
        """What of ``seconds`` a step of ``width`` tokens has to answer for: not what is far above ``expected``."""
        few = self._counts.get(width, 0) < _FIRST  # such a step may be much slower than what is expected of it
        return expected if seconds > (4 if few else 2) * expected else seconds
