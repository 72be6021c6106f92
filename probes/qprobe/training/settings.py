"""How a probe is trained."""

from dataclasses import dataclass

from qprobe.errors import TrainingError
from qprobe.probe.values import OBJECTIVES, is_beta

__all__ = ["TrainingSettings"]

# Strong to weak. At the strong end the weights are the loss's gradient at 0, up to their size, and
# a stronger decay changes nothing; the weak end nearly interpolates where samples are few.
_WEIGHT_DECAYS = (1e4, 3000.0, 1000.0, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How to train a probe.

    Attributes:
        objective: One of ``qprobe.probe.values.OBJECTIVES``.
        beta: Temperature at which cross-validation judges, in units of the finished score, >= 0.
            It does not enter the loss: see ``fit_probe``.
        per_prompt: Whether ``ce`` and ``mse`` fit an intercept for each prompt, so that the weights
            need not tell hard prompts from easy ones. Nothing of it is left in the probe. The other
            objectives compare samples of a prompt, so that it would change nothing.
        weight_decays: Those to choose from, each >= 0: the loss plus half of it times the sum of
            squared weights on standardised features is minimised. As the loss is a mean, its
            meaning does not change with the number of samples. Empty takes a grid.
        num_folds: Of cross-validation over prompts, >= 2.
        seed: Of the folds, >= 0.

    Raises:
        TrainingError: A setting is out of range; it is named.
    """

    objective: str = "ce"
    beta: float = 0.1
    per_prompt: bool = False
    weight_decays: tuple[float, ...] = ()
    num_folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            allowed = ", ".join(OBJECTIVES)
            raise TrainingError("objective", f"must be one of {allowed}, got {self.objective!r}")
        if not is_beta(self.beta):
            raise TrainingError("beta", f"must be a finite number >= 0, got {self.beta!r}")
        if not isinstance(self.per_prompt, bool):
            raise TrainingError("per_prompt", f"must be true or false, got {self.per_prompt!r}")
        for name, lowest in (("num_folds", 2), ("seed", 0)):
            _check_count(name, getattr(self, name), lowest=lowest)
        for decay in self.weight_decays:
            if not is_beta(decay):
                raise TrainingError("weight_decays", f"must be finite and >= 0, got {decay!r}")

    @property
    def decays(self) -> tuple[float, ...]:
        """The weight decays to try, each once, the strongest first."""
        return tuple(sorted({*(self.weight_decays or _WEIGHT_DECAYS)}, reverse=True))


def _check_count(name: str, value: object, *, lowest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise TrainingError(name, f"must be an integer >= {lowest}, got {value!r}")
