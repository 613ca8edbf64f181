"""Right answers to lesson 11 in another style: each must pass all checks."""

import math

import torch
import torch.nn.functional as F
from transformers import DynamicCache

from course.making.answers import reference, right

guide_ = reference("guide")
plausible_ = reference("plausible")

# --- guide ----------------------------------------------------------------------------


@right("guide")
def a_weighted_sum(cond, uncond, scale):
    """scale times one plus 1 - scale times the other."""
    cond = torch.log_softmax(cond.to(torch.float32), dim=1)
    uncond = torch.log_softmax(uncond.to(torch.float32), dim=1)
    return scale * cond + (1 - scale) * uncond


@right("guide")
def from_the_condition(cond, uncond, scale):
    """The other convention, with scale - 1."""
    c, u = (F.log_softmax(x, dim=-1, dtype=torch.float32) for x in (cond, uncond))
    return c + (scale - 1) * (c - u)


@right("guide")
def with_lerp_and_logsumexp(cond, uncond, scale):
    """torch.lerp, and the logarithm by hand."""

    def logp(x):
        x = x.double()
        return x - x.logsumexp(-1, keepdim=True)

    return torch.lerp(logp(uncond), logp(cond), float(scale)).float()


@right("guide")
def row_by_row(cond, uncond, scale):
    """A loop over the batch."""
    rows = []
    for c, u in zip(cond.float(), uncond.float(), strict=True):
        c, u = c.log_softmax(0), u.log_softmax(0)
        rows.append(u + (c - u) * scale)
    return torch.stack(rows)


# --- cfg_decode -----------------------------------------------------------------------


@right("cfg_decode")
def caches_of_its_own(model, ids, negative_ids, scale, new, pick, eos_ids):
    """Two DynamicCaches, made before the loop."""
    fed, caches = [ids, negative_ids], [DynamicCache(), DynamicCache()]
    tokens = []
    while len(tokens) < new:
        with torch.inference_mode():
            logits = [
                model(input_ids=x, past_key_values=c, use_cache=True).logits[:, -1]
                for x, c in zip(fed, caches, strict=True)
            ]
        scores = guide_(*(x.clone() for x in logits), scale)
        token = int(pick(scores))
        tokens.append(token)
        if token in set(eos_ids):
            break
        fed = [torch.tensor([[token]])] * 2
    new_ids = torch.tensor([tokens], dtype=torch.long)
    return torch.cat([ids, new_ids.reshape(1, -1)], 1)


@right("cfg_decode")
def two_rows_of_one_batch(model, ids, negative_ids, scale, new, pick, eos_ids):
    """Pads on the left and runs both texts in one call."""
    width = max(ids.shape[1], negative_ids.shape[1])
    both = (ids, negative_ids)
    fed = torch.cat([F.pad(x, (width - x.shape[1], 0)) for x in both])
    mask = torch.cat([F.pad(torch.ones_like(x), (width - x.shape[1], 0)) for x in both])
    out, cache = ids, None
    for _ in range(new):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -fed.shape[1] :]
        with torch.no_grad():
            got = model(
                fed,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
        cache, logits = got.past_key_values, got.logits[:, -1].float()
        token = pick(guide_(logits[:1], logits[1:], scale))
        out = torch.cat([out, token], dim=1)
        if torch.isin(token, torch.tensor(eos_ids, dtype=torch.long)).any():
            return out
        fed = token.repeat(2, 1)
        mask = torch.cat([mask, mask.new_ones(2, 1)], 1)
    return out


@right("cfg_decode")
def no_second_call_where_it_is_off(model, ids, negative_ids, scale, new, pick, eos_ids):
    """With scale 1 the negative text has no say."""

    @torch.no_grad()
    def step(fed, cache):
        got = model(fed, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return got.logits[:, 0].float(), got.past_key_values

    out, fed, other, one, two = ids.clone(), ids, negative_ids, None, None
    for _ in range(new):
        cond, one = step(fed, one)
        if scale == 1:
            scores = cond.log_softmax(-1)
        else:
            uncond, two = step(other, two)
            scores = guide_(cond, uncond, scale)
        fed = other = pick(scores)
        out = torch.hstack([out, fed])
        if out[0, -1].item() in eos_ids:
            break
    return out


# --- context_aware --------------------------------------------------------------------


@right("context_aware")
def written_out(with_context, without, weight):
    """The formula as it stands."""
    a, b = with_context.float().log_softmax(-1), without.float().log_softmax(-1)
    return a + weight * (a - b)


@right("context_aware")
def the_form_of_the_paper(with_context, without, weight):
    """(1 + weight) times logits minus weight times logits: no log_softmax at all."""
    return (1 + weight) * with_context.float() - weight * without.float()


@right("context_aware")
def normalised(with_context, without, weight):
    """Log-probabilities that sum to one."""
    scores = torch.lerp(without.double(), with_context.double(), 1.0 + weight)
    return scores.log_softmax(-1).float()


# --- plausible ------------------------------------------------------------------------


@right("plausible")
def as_a_distance_of_logits(logits, alpha):
    """log(alpha) below the largest logit."""
    if alpha < 0 or alpha > 1:
        raise ValueError("alpha")
    floor = math.log(alpha) if alpha else -math.inf
    x = logits.double()
    return x >= x.max(dim=-1, keepdim=True).values + floor


@right("plausible")
def what_is_not_below(logits, alpha):
    """The negation of what is removed."""
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(alpha)
    probs = torch.softmax(logits, -1, dtype=torch.float32)
    best, _ = probs.max(-1)
    return torch.logical_not(probs < best.unsqueeze(-1) * alpha)


@right("plausible")
def row_after_row(logits, alpha):
    """A loop, with the ratio to the best."""
    if not (alpha >= 0 and alpha <= 1):
        raise ValueError(alpha)
    rows = [row.float() - row.float().max() for row in logits]
    return torch.stack([row.exp() >= alpha for row in rows])


# --- contrastive ----------------------------------------------------------------------


@right("contrastive")
def with_where(expert, amateur, alpha, beta):
    """torch.where, and the formula of O'Brien and Lewis on logits."""
    scores = (1 + beta) * expert.float() - beta * amateur.float()
    return torch.where(plausible_(expert, alpha), scores, torch.tensor(-torch.inf))


@right("contrastive")
def by_index(expert, amateur, alpha, beta):
    """Starts from -inf and fills in the plausible ones."""
    if not 0 <= alpha <= 1:
        raise ValueError("alpha")
    e, a = expert.double().log_softmax(-1), amateur.double().log_softmax(-1)
    keep = e >= e.amax(-1, keepdim=True) + (math.log(alpha) if alpha else -math.inf)
    scores = torch.full_like(e, -math.inf)
    scores[keep] = e[keep] + beta * (e[keep] - a[keep])
    return scores.float()


@right("contrastive")
def normalised_contrast(expert, amateur, alpha, beta):
    """A log_softmax on top."""
    scores = guide_(expert, amateur, 1 + beta)
    scores[~plausible_(expert, alpha)] = float("-inf")
    return scores.log_softmax(-1)


# --- proxy_tune -----------------------------------------------------------------------


@right("proxy_tune")
def on_bare_logits(base, tuned, untuned, weight=1.0):
    """The form of the paper: a constant changes nothing."""
    return base.float() + weight * (tuned.float() - untuned.float())


@right("proxy_tune")
def in_double(base, tuned, untuned, weight=1.0):
    """Double precision, normalised."""
    scores = base.double() + weight * tuned.double() - weight * untuned.double()
    return scores.log_softmax(-1).to(torch.float32)


@right("proxy_tune")
def stacked(base, tuned, untuned, weight=1.0):
    """One log_softmax for all three."""
    b, t, u = torch.stack([base, tuned, untuned]).float().log_softmax(-1)
    return torch.add(b, t - u, alpha=weight)


# --- js_divergence --------------------------------------------------------------------


@right("js_divergence")
def with_kl_div(p_logits, q_logits):
    """torch's kl_div, the right way round."""
    p, q = p_logits.float().softmax(-1), q_logits.float().softmax(-1)
    log_m = ((p + q) / 2).clamp(min=1e-38).log()
    parts = [F.kl_div(log_m, x, reduction="none").sum(-1) for x in (p, q)]
    return sum(parts) / 2


@right("js_divergence")
def as_a_difference_of_entropies(p_logits, q_logits):
    """H(m) - (H(p) + H(q)) / 2."""
    p, q = p_logits.double().softmax(-1), q_logits.double().softmax(-1)

    def entropy(x):
        return torch.special.entr(x).sum(-1)

    return (entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2).float()


@right("js_divergence")
def with_nan_to_num(p_logits, q_logits):
    """0 times anything is put right at the end."""
    p, q = p_logits.float().softmax(-1), q_logits.float().softmax(-1)
    m = 0.5 * p + 0.5 * q
    terms = (p * (p / m).log()).nan_to_num(0.0), (q * (q / m).log()).nan_to_num(0.0)
    return 0.5 * (terms[0] + terms[1]).sum(dim=-1)


# --- dola -----------------------------------------------------------------------------


def divergence(p, q):
    """Of any leading dimensions."""
    m = (p + q) / 2
    return (
        torch.special.entr(m) - (torch.special.entr(p) + torch.special.entr(q)) / 2
    ).sum(-1)


@right("dola")
def all_layers_at_once(final, early, alpha):
    """Broadcasts over the layers, and gathers."""
    p, q = final.double().softmax(-1), early.double().softmax(-1)
    chosen = divergence(p[None], q).argmax(0)
    chosen = chosen[None, :, None].expand(1, *final.shape)
    amateur = early.gather(0, chosen)[0]
    scores = final.float() - amateur.float()
    return scores.masked_fill(~plausible_(final, alpha), -torch.inf)


@right("dola")
def one_row_after_the_other(final, early, alpha):
    """A loop over the rows, with a loop over the layers."""
    keep = plausible_(final, alpha)
    rows = []
    for n in range(final.shape[0]):
        p = final[n].double().softmax(-1)
        best, most = None, -1.0
        for layer in early[:, n]:
            far = float(divergence(p, layer.double().softmax(-1)))
            if far > most + 1e-12:
                best, most = layer, far
        scores = p.log() - best.double().log_softmax(-1)
        rows.append(torch.where(keep[n], scores, torch.tensor(-math.inf).double()))
    return torch.stack(rows).float()


@right("dola")
def normalised_layers(final, early, alpha):
    """einsum with a one-hot choice, and a log_softmax on top."""
    mask = plausible_(final, alpha)
    p, q = final.double().softmax(-1), early.double().softmax(-1)
    first = divergence(p.expand_as(q), q).argmax(0)
    amateur = torch.stack([early[k, n] for n, k in enumerate(first.tolist())])
    scores = torch.log_softmax(final.float(), -1) - torch.log_softmax(
        amateur.float(), -1
    )
    scores[~mask] = -torch.inf
    return scores.log_softmax(-1)


# --- contrastive_search_pick ----------------------------------------------------------


@right("contrastive_search_pick")
def with_cosine_similarity(probs, candidate_states, past_states, k, alpha):
    """torch's own cosine of all pairs."""
    if k != candidate_states.size(1):
        raise ValueError("k")
    values, indices = torch.topk(probs, k, dim=-1)
    cosines = F.cosine_similarity(
        candidate_states[:, :, None], past_states[:, None], dim=-1
    )
    scores = (1 - alpha) * values - alpha * cosines.max(-1).values
    return indices[torch.arange(len(probs)), scores.argmax(-1)][:, None]


@right("contrastive_search_pick")
def in_python(probs, candidate_states, past_states, k, alpha):
    """Loops over rows, candidates and places."""
    if candidate_states.shape[1] != k:
        raise ValueError(f"k={k}")
    chosen = []
    for p, candidates, past in zip(probs, candidate_states, past_states, strict=True):
        values, tokens = p.sort(descending=True, stable=True)
        scores = []
        for value, state in zip(values[:k].tolist(), candidates, strict=True):
            near = max(float(F.cosine_similarity(state, h, dim=0)) for h in past)
            scores.append((1 - alpha) * value - alpha * near)
        chosen.append(tokens[scores.index(max(scores))].item())
    return torch.tensor(chosen)[:, None]


@right("contrastive_search_pick")
def as_an_einsum(probs, candidate_states, past_states, k, alpha):
    """Norms divided out of the product."""
    if candidate_states.shape[1] != k:
        raise ValueError(k)
    dots = torch.einsum("bkd,bsd->bks", candidate_states, past_states)
    lengths = (
        candidate_states.norm(dim=-1)[:, :, None] * past_states.norm(dim=-1)[:, None]
    )
    penalty = (dots / lengths).amax(dim=2)
    top = torch.topk(probs, k)
    place = ((1 - alpha) * top.values - alpha * penalty).argmax(1, keepdim=True)
    return torch.take_along_dim(top.indices, place, dim=1)
