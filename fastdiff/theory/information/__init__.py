"""Surprise, entropy, cross-entropy and KL divergence, in nats or bits.

    surprise(x) = -log p(x)                      H(p)    = E_p[-log p]
    H(p, q)     = E_p[-log q]                    KL(p‖q) = E_p[log p - log q] = H(p, q) - H(p) >= 0

(Shannon 1948, theorem 2; Kullback & Leibler 1951, section 2.) A distribution has one of three
forms. The measures of the first two are computed in closed form.

- discrete: a tensor of probabilities [..., K], or of unnormalised log-probabilities with
  `logits=True`;
- a diagonal `Gaussian(mean, logvar)`, or the plain pair, of tensors [B, ...]: results are [B];
- `Sampled(log_prob, sample)`: any density that can be evaluated and drawn from. Expectations are
  means over draws, returned as an `Estimate(value, stderr)`. A second distribution q needs only its
  log-density, so it may be a function.
"""

from .distributions import Estimate, Gaussian, Sampled
from .measures import cross_entropy, entropy, kl, surprise

__all__ = ["Estimate", "Gaussian", "Sampled", "cross_entropy", "entropy", "kl", "surprise"]
