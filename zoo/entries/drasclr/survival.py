"""Survival from features: Cox's proportional hazards with a ridge penalty, and the concordance that judges it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from zoo.errors import OptionError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def fit_cox(x: Floats, time: Floats, event: Bools, penalty: float) -> Floats:
    """Fit log hazards that are linear in features: coefficients `(D,)`; x @ coefficients is the risk.

    Minimises -(log partial likelihood) / n + penalty / 2 |b|^2 by L-BFGS. Subjects with the same time are at risk
    together (Breslow, Biometrics 1974).

    Args:
        x: Features `(n, D)`, standardised.
        time: Until the event, or until observation ended, `(n,)`.
        event: Whether there was an event, `(n,)`.
        penalty: Above 0.

    Raises:
        OptionError: There is no event.
    """
    from scipy.optimize import minimize

    if not event.any():
        raise OptionError(f"none of {len(time)} subjects has an event: at least one is needed")

    def objective(b: Floats) -> tuple[float, Floats]:
        likelihood, gradient = partial_likelihood(x, time, event, b)
        value = -likelihood / len(x) + penalty / 2 * float(b @ b)
        return value, -gradient / len(x) + penalty * b

    found: Floats = minimize(objective, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", options={"gtol": 1e-8}).x
    return found


def partial_likelihood(x: Floats, time: Floats, event: Bools, b: Floats) -> tuple[float, Floats]:
    """Cox's log partial likelihood of coefficients `(D,)`, and its gradient `(D,)`.

    The sum over events i of r_i - log(sum over j with time_j >= time_i of exp(r_j)), with r = x @ b.
    """
    order = np.argsort(time, kind="stable")
    x, time, event = x[order], time[order], event[order]
    risk = x @ b
    first, last = (np.searchsorted(time, time, side) for side in ("left", "right"))
    at_risk = np.logaddexp.accumulate(risk[::-1])[::-1][first]  # in logarithms, so that no risk is too large
    hazard = np.logaddexp.accumulate(np.where(event, -at_risk, -np.inf))[last - 1]
    gradient: Floats = x.T @ (event - np.exp(risk + hazard))
    return float((risk - at_risk)[event].sum()), gradient


def concordance(time: Floats, event: Bools, risk: Floats) -> float:
    """Harrell's C: the share of pairs with a known order in which the first to have the event has the higher risk.

    The order is known where the earlier time is an event, or, at equal times, where only one is. Equal risks count half
    (Harrell et al., JAMA 1982).

    Args:
        time: `(n,)`.
        event: `(n,)`.
        risk: `(n,)`.

    Raises:
        OptionError: There is no such pair.
    """
    pairs, right = 0, 0.0
    for i in np.flatnonzero(event):
        later = (time > time[i]) | ((time == time[i]) & ~event)
        pairs += int(later.sum())
        right += float((risk[later] < risk[i]).sum() + 0.5 * (risk[later] == risk[i]).sum())
    if not pairs:
        raise OptionError(f"of {len(time)} subjects with {int(event.sum())} event(s) no two have a known order")
    return right / pairs
