"""How many tokens to draft: what promises the most tokens a second, and never what could cost too much time.

Three things decide. What a step typically takes, by its width (step_times.py). How likely the model accepts a draft's
tokens, which is counted. And a credit of time that bounds what drafting may lose: it starts at two plain steps, grows
by 1 % of the time and by what drafts gain, and a draft is only made where the credit covers its failure. So, whatever
the text, drafting costs at most 1 % of the time and two steps, over the life of a model.

What copies from the text would be worth is seen without making them (draft_watch.py). Where only a trial tells, as with
a draft model, trials of what does not promise to pay come at growing distances.

Interruptions by other programs, of milliseconds where a small model's step takes a tenth of one, would use the credit
up at random. So a step is charged what it is to blame for, times what steps with drafts suffer from interruptions on
average; and what a token is worth is what plain steps take on average.
"""

from __future__ import annotations

from collections.abc import Mapping

from helium_onnx.generation.step_times import Interruptions, StepTimes

#: The most tokens of a draft.
MOST_TOKENS = 16
#: Where a draft's advantage is smaller, it is not worth its risk.
_LEAST_GAIN = 1.03
#: Of the credit, in plain steps, and its growth as a share of the time.
_FIRST_CREDIT, _MOST_CREDIT, _CREDIT_RATE = 2.0, 16.0, 0.01
#: Positions that a draft reaches more rarely are not looked at.
_UNLIKELY = 0.05
#: The longest pause between two trials of what does not pay, in opportunities.
_LONGEST_PAUSE = 64
#: Steps with drafts after which a plain one is made, so that its time is known.
_LONGEST_WITHOUT_PLAIN = 64
#: An observation's weight falls by this much with each later one: the last ten count.
_MEMORY = 0.9
#: How many observations what is believed beforehand is worth.
_PRIOR_WEIGHT = 2.0


class Acceptance:
    """How likely the tokens of one kind of draft are accepted, by position: each given that those before it were."""

    def __init__(self, prior: float) -> None:
        # What is believed beforehand of the first position fades with what is seen.
        self._tested = [_PRIOR_WEIGHT] + [0.0] * (MOST_TOKENS - 1)
        self._accepted = [_PRIOR_WEIGHT * prior] + [0.0] * (MOST_TOKENS - 1)
        self.pause = self.waits = 0  # opportunities: between the last two trials, and until the next one

    def record(self, tested: int, accepted: int) -> None:
        """The first ``tested`` positions were compared with the model's choice, and the first ``accepted`` agreed."""
        for position in range(tested):
            self.record_one(position, position < accepted)

    def record_one(self, position: int, accepted: bool) -> None:
        """The same of one position: the model's choice agreed with it, or did not."""
        self._tested[position] = self._tested[position] * _MEMORY + 1
        self._accepted[position] = self._accepted[position] * _MEMORY + accepted

    def rate(self, position: int, before: float) -> float:
        """That of ``position``. ``before``, the rate of the position before it, is believed until more is known."""
        if position == 0:
            return self._accepted[0] / self._tested[0]
        return (self._accepted[position] + _PRIOR_WEIGHT * before) / (self._tested[position] + _PRIOR_WEIGHT)


class DraftLength:
    """Chooses the length of each draft. Has no clock: it is told what steps took, in seconds.

    ``priors``: the kinds of drafts (for prompt lookup the length of the match) and how likely their first token is
    accepted, to begin with. ``makes_trials``: whether drafts are also made to learn what they are worth; else
    ``record_watched`` must tell.
    """

    def __init__(self, priors: Mapping[int, float], *, makes_trials: bool = True) -> None:
        self._priors, self._makes_trials = priors, makes_trials
        self._times = StepTimes(MOST_TOKENS + 1)
        self._interruptions = Interruptions()
        self._credit: float | None = None  # seconds; until a plain step's time is known
        self._without_plain = 0
        self._draft_price = 0.0  # what making the draft that was chosen last is expected to take
        self._is_trial = False  # whether the last choice promised nothing, and was made to learn
        self.begin_text()

    def begin_text(self) -> None:
        """Forget what is known of the last text's drafts; times and credit are the machine's and stay."""
        self._acceptances = {kind: Acceptance(prior) for kind, prior in self._priors.items()}

    def choose(self, kind: int, most: int, *, setup_seconds: float = 0.0, seconds_per_token: float = 0.0) -> int:
        """Tokens to draft now, 0 to ``most``: 0 is a plain step. Making the draft takes the times given."""
        acceptance = self._acceptances[kind]
        self._is_trial = False
        if not self._times.known or most < 1 or self._without_plain >= _LONGEST_WITHOUT_PLAIN:
            return 0
        if acceptance.waits > 0:
            acceptance.waits -= 1
            return 0
        if self._credit is None:
            self._credit = _FIRST_CREDIT * self._times.plain.mean
        if not self._makes_trials and acceptance.rate(0, 1.0) <= self._times.least_rate(_LEAST_GAIN):
            return 0  # as mostly; the rest would come to the same
        plain = self._times.plain.seconds
        affordable = plain + self._credit
        estimates = self._times.estimates()
        best, best_rate = 0, _LEAST_GAIN / plain
        tokens = reached = rate = 1.0
        for length in range(1, min(most, MOST_TOKENS) + 1):
            seconds = estimates[length + 1] + setup_seconds + length * seconds_per_token
            if seconds > affordable:
                if length == 1:
                    return 0
                break
            rate = acceptance.rate(length - 1, rate)
            reached *= rate
            tokens += reached
            if tokens > best_rate * seconds:
                best, best_rate = length, tokens / seconds
            if reached < _UNLIKELY:
                break
        if best == 0 and not self._makes_trials:
            return 0
        self._is_trial = best == 0
        length = best or 1
        self._draft_price = setup_seconds + length * seconds_per_token
        return length

    def record_plain(self, seconds: float, steps: int = 1) -> None:
        """A step of one token took ``seconds``, the first of so many ``steps``."""
        self._times.observe(1, seconds)
        self._without_plain = 0
        self._earn(steps * _CREDIT_RATE * self._times.plain.mean)

    def record_watched(self, kind: int, position: int, accepted: bool) -> None:
        """A draft that was not made would have had the model's token at ``position``, after right ones, or not."""
        self._acceptances[kind].record_one(position, accepted)

    def record_draft(
        self, kind: int, drafted: int, tokens: int, accepted: int, seconds: float, draft_seconds: float = 0.0
    ) -> None:
        """A step gave ``tokens``, ``accepted`` of them drafted, and took ``seconds``; its draft ``draft_seconds``.

        A text that ends within the draft leaves its last tokens untested.
        """
        assert self._times.known and 0 <= accepted <= drafted and accepted <= tokens <= drafted + 1
        width, actual = drafted + 1, seconds + draft_seconds
        own = self._times.own_share(width, actual, self._times.estimate(width) + self._draft_price)
        spent = own * self._interruptions.observe(actual, own, self._times.plain)
        self._times.observe(width, seconds)
        self._without_plain += 1
        self._earn(tokens * self._times.plain.mean - (1 - _CREDIT_RATE) * spent)
        acceptance = self._acceptances[kind]
        acceptance.record(min(tokens, drafted), accepted)
        if not self._is_trial:
            acceptance.pause = 0
        elif not accepted:  # else the next opportunity is tried too, until drafting promises something
            acceptance.pause = min(max(1, 2 * acceptance.pause), _LONGEST_PAUSE)
            acceptance.waits = acceptance.pause

    def _earn(self, seconds: float) -> None:
        if self._credit is not None:
            self._credit = min(self._credit + seconds, _MOST_CREDIT * self._times.plain.mean)
