"""H3 (Fu et al. 2022, arXiv:2212.14052): two state space models between gates. q, k, v are projections of u;
per head, with d = d_head,

    k'_t  = sum_{tau < d_state} kappa_tau (.) k_{t-tau}            the shift SSM, a convolution by channel
    kv_t  = k'_t v_t^T                                             [d, d]
    h_t   = A h_{t-1} + B kv_t                                     the diagonal SSM, d_state / 2 complex modes
    y_t   = 2 Re sum_modes C h_t + D kv_t = sum_{j <= t} K_{t-j} kv_j
    z_t   = y_t^T q_t                     = sum_{j <= t} K_{t-j} (q_t . k'_j) v_j
    out_t = output_linear(z_t)

The SSMs are the same at all positions, so each is a convolution with a fixed filter:

    kappa_tau = sum_n B_n C_{n+tau}         and ssm_k_D more at 0    B, C the shift's, real [channel, d_state]
    K_tau     = 2 Re sum_modes C B A^tau    and D more at 0          A, B by the bilinear rule, with step dt
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Complex, Float
from torch import Tensor, nn

from hooked_ssm.config import HookedSSMConfig, MixerConfig
from hooked_ssm.hooks import Hook, call_hooked
from hooked_ssm.layers import Linear
from hooked_ssm.mixers.base import Activations, AttentionFreeMixer
from hooked_ssm.mixers.h3_kernels import DiagonalKernel, ShiftKernel
from hooked_ssm.ops.complex_edit import edit_as_real, edit_states_as_real
from hooked_ssm.ops.linear_attention import Edit
from hooked_ssm.ops.linear_scan import linear_scan
from hooked_ssm.ops.long_conv import long_conv, toeplitz
from hooked_ssm.ops.s4d import s4d_filter, s4d_last_state, s4d_response
from hooked_ssm.ops.state_edit import scan_with_edits


@dataclass(frozen=True, kw_only=True)
class H3Config(MixerConfig):
    """d_state: how many positions the shift SSM reaches, and twice the number of the diagonal SSM's modes.

    dt_min, dt_max: the diagonal SSM's dt is initially log-uniform between them.
    output_order: how output_linear's inputs are ordered, slowest axis first.
    """

    name: ClassVar[str] = "h3"
    d_state: int = 64
    dt_min: float = 1e-3
    dt_max: float = 0.1
    output_order: Literal["head d_head", "d_head head"] = "head d_head"

    def __post_init__(self):
        if self.d_state < 2 or self.d_state % 2:
            raise ValueError(
                f"H3's d_state must be even (a mode has two real dimensions), at least 2, got {self.d_state}."
            )
        if not 0 < self.dt_min <= self.dt_max:
            raise ValueError(
                f"H3's dt_min must be positive and at most dt_max, got {self.dt_min} and {self.dt_max}."
            )
        if self.output_order not in ("head d_head", "d_head head"):
            raise ValueError(
                f"H3's output_order must be 'head d_head' or 'd_head head', got {self.output_order!r}."
            )

    def build(self, cfg: HookedSSMConfig) -> "H3":
        return H3(self, cfg)


class H3State(NamedTuple):
    """conv: the keys that the shift SSM still reaches, d_state - 1 at most. ssm: h, if it was to be kept."""

    conv: Float[Tensor, "batch past channel"]
    ssm: Complex[Tensor, "batch head d_k d_v mode"] | None


class H3(AttentionFreeMixer):
    """kv and the state have an entry for every pair of a key's and a value's channels: d_head^2 a head."""

    def __init__(self, mixer_cfg: H3Config, cfg: HookedSSMConfig):
        super().__init__(cfg)
        self.mixer_cfg = mixer_cfg
        self.d_state = mixer_cfg.d_state
        channels = cfg.n_heads * cfg.d_head

        self.hook_conv_in = Hook("batch pos channel", "k before the shift SSM", copy=True)
        self.hook_conv_filter = Hook("batch lag channel", "kappa, the shift SSM's filter, with its skip at 0")
        self.hook_conv_taps = Hook(
            "batch pos tap channel", "what the token `tap` places back adds to k', skip included"
        )
        self.hook_conv = Hook("batch pos channel", "k', what comes out of the shift SSM", copy=True)
        self.hook_q = Hook("batch pos head d_head", "q", copy=True)
        self.hook_k = Hook("batch pos head d_head", "k', by head", copy=True)
        self.hook_v = Hook("batch pos head d_head", "v", copy=True)
        self.hook_kv = Hook("batch pos head d_k d_v", "k' v^T, the input of the diagonal SSM")
        self.hook_filter = Hook("batch lag head", "K, the diagonal SSM's filter, with its skip D at 0")
        self.hook_ssm_decay = Hook("batch pos head mode part", "A, by which the state is multiplied (re, im)")
        self.hook_ssm_write = Hook(
            "batch pos head d_k d_v mode part", "B k' v^T, what is added to the state (re, im)"
        )
        self.hook_ssm_state = Hook(
            "batch pos head d_k d_v mode part",
            "the diagonal SSM's state h (re, im); an edit is carried forward",
        )
        self.hook_long_conv = Hook(
            "batch pos head d_k d_v", "y, what comes out of the diagonal SSM, its skip included"
        )
        self.hook_pattern = Hook("batch head dest src", "the causal matrix that takes hook_v to hook_z")

        self.q_proj, self.k_proj, self.v_proj = (
            Linear(cfg.d_model, channels, bias=True, std=cfg.linear_std) for _ in range(3)
        )
        self.ssm_k_kernel = ShiftKernel(channels, mixer_cfg.d_state)
        self.ssm_k_D = nn.Parameter(torch.empty(channels))
        self.kernel = DiagonalKernel(cfg.n_heads, mixer_cfg.d_state, mixer_cfg.dt_min, mixer_cfg.dt_max)
        self.D = nn.Parameter(torch.empty(cfg.n_heads))
        self.output_linear = Linear(channels, cfg.d_model, bias=True, std=cfg.linear_std)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.ssm_k_D.normal_()
        self.D.normal_()

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        pattern = f"d_model ({self.mixer_cfg.output_order}) -> head d_head d_model"
        return rearrange(self.output_linear.weight, pattern, head=self.cfg.n_heads)

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:
        return self.output_linear.bias

    def extend(
        self, u: Float[Tensor, "batch pos d_model"], state: H3State | None = None
    ) -> tuple[Float[Tensor, "batch pos d_model"], H3State]:
        return self.mix(*self.project(u), state, keep_state=True)

    def forward(self, u: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        return self.mix(*self.project(u), None, keep_state=False)[0]

    def project(
        self, u: Float[Tensor, "batch pos d_model"]
    ) -> tuple[
        Float[Tensor, "batch pos head d_head"],
        Float[Tensor, "batch pos head d_head"],
        Float[Tensor, "batch pos head d_head"],
    ]:
        """q, k (before the shift SSM) and v."""
        q, k, v = self.q_proj(u), self.k_proj(u), self.v_proj(u)
        return self.by_head(q), self.by_head(k), self.by_head(v)

    def by_head(self, x: Float[Tensor, "batch pos channel"]) -> Float[Tensor, "batch pos head d_head"]:
        return rearrange(x, "batch pos (head d_head) -> batch pos head d_head", head=self.cfg.n_heads)

    def split(
        self,
        q_input: Float[Tensor, "batch pos head d_model"],
        k_input: Float[Tensor, "batch pos head d_model"],
        v_input: Float[Tensor, "batch pos head d_model"],
    ) -> Float[Tensor, "batch pos d_model"]:
        """q reads q_input; k, and so the shift SSM, k_input; v reads v_input."""

        def project(x: Tensor, linear: Linear) -> Tensor:
            W = rearrange(
                linear.weight, "(head d_head) d_model -> head d_head d_model", head=self.cfg.n_heads
            )
            y = einsum(
                x, W, "batch pos head d_model, head d_head d_model -> batch pos head d_head"
            ).contiguous()
            return y + linear.bias.unflatten(0, W.shape[:2])

        q, k, v = project(q_input, self.q_proj), project(k_input, self.k_proj), project(v_input, self.v_proj)
        return self.mix(q, k, v, None, keep_state=False)[0]

    def mix(
        self,
        q: Float[Tensor, "batch pos head d_head"],
        k: Float[Tensor, "batch pos head d_head"],
        v: Float[Tensor, "batch pos head d_head"],
        state: H3State | None,
        *,
        keep_state: bool,
    ) -> tuple[Float[Tensor, "batch pos d_model"], H3State]:
        """All after the projections. Only if it is to be kept is the diagonal SSM's last state computed: the
        output does not need it, and it costs more than the convolution."""
        past, h = (None, None) if state is None else state
        k, past = self.shift_ssm(k.flatten(2), past)
        q, k, v = self.hook_q(q), self.hook_k(self.by_head(k)), self.hook_v(v)
        kv = see(self.hook_kv, entries_first(k).unsqueeze(2) * entries_first(v).unsqueeze(1))

        A, B, C = self.kernel.discrete()
        K = with_skip(s4d_filter(A, C * B, q.shape[1]), self.D)
        x = rearrange(kv, f"{ENTRIES_FIRST} -> {ENTRIES_LAST}").to(K.dtype)
        edits = call_hooked(
            recurrence_edit,
            *(x, A, B, C, self.D, h),
            edit_decay=self.hook_ssm_decay,
            edit_write=self.hook_ssm_write,
            edit_state=self.hook_ssm_state,
        )
        with torch.set_grad_enabled(torch.is_grad_enabled() and edits is None):
            y = conv_entries(kv, K)
            if h is not None:
                y = y + rearrange(s4d_response(A, C, h, q.shape[1]), f"{ENTRIES_LAST} -> {ENTRIES_FIRST}")
            last = s4d_last_state(A, B, x, h) if keep_state else None
        if edits is not None:
            y_edit, last_edit = edits
            y = y + rearrange(y_edit, f"{ENTRIES_LAST} -> {ENTRIES_FIRST}")
            last = None if last is None else last + last_edit
        # What an edit adds, by document. The filter itself stays one for all, which is fast.
        edit = self.hook_filter.change_of(lambda K: K.repeat(len(kv), 1, 1), K)
        if edit is not None:
            y, K = y + conv_entries(kv, edit), K + edit
        y = see(self.hook_long_conv, y.to(kv.dtype))
        z = rearrange((y * entries_first(q).unsqueeze(2)).sum(1), "batch d pos head -> batch pos head d")
        z = self.through_pattern(z, v, state, causal_matrix, q, k, K)
        return self.write(self.hook_z(z.to(v.dtype))), H3State(past, last)

    def shift_ssm(
        self, k: Float[Tensor, "batch pos channel"], past: Float[Tensor, "batch past channel"] | None
    ) -> tuple[Float[Tensor, "batch pos channel"], Float[Tensor, "batch kept channel"]]:
        """k', and the keys that later positions reach."""
        k = self.hook_conv_in(k)
        at_hand = k if past is None else torch.cat([past, k], dim=1)
        kappa = with_skip(self.ssm_k_kernel(at_hand.shape[1]), self.ssm_k_D)
        lags = len(kappa)
        y = long_conv(k, kappa, past)
        # As many entries as positions, as in every filter: beyond d_state they are 0.
        longer = 0, 0, 0, at_hand.shape[1] - lags
        edit = self.hook_conv_filter.change_of(lambda kappa: F.pad(kappa, longer).repeat(len(k), 1, 1), kappa)
        if edit is not None:
            y, kappa = y + long_conv(k, edit, past), F.pad(kappa, longer) + edit
        change = self.hook_conv_taps.change_of(
            partial(taps, positions=k.shape[1]), at_hand, kappa[..., :lags, :]
        )
        if change is not None:
            y = y + change.sum(2)
        return self.hook_conv(y.to(k.dtype)), at_hand[:, 1 - self.d_state :].clone()

    def states(self, activations: Activations) -> Float[Tensor, "batch pos head d_k d_v mode part"]:
        A, B, _ = self.kernel.discrete()
        write = activations["hook_kv"].unsqueeze(-1) * B[:, None, None]
        return torch.view_as_real(linear_scan(A[:, None, None].expand_as(write), write))

    def effective_attention(self, activations: Activations) -> Float[Tensor, "batch head dest src"]:
        """M_ij = K_{i-j} (q_i . k'_j), one for all channels of a head: it takes hook_v to hook_z."""
        return causal_matrix(*(activations[name] for name in ("hook_q", "hook_k", "hook_filter")))


def with_skip(
    filter: Float[Tensor, "lag channel"], skip: Float[Tensor, " channel"]
) -> Float[Tensor, "lag channel"]:
    return torch.cat([filter[:1] + skip, filter[1:]])


def taps(
    keys: Float[Tensor, "batch past_and_pos channel"],
    kappa: Float[Tensor, "lag channel"] | Float[Tensor, "batch lag channel"],
    positions: int,
) -> Float[Tensor, "batch pos tap channel"]:
    """What each of the keys that a position reaches adds to it."""
    lags = kappa.shape[-2]
    reached = F.pad(keys, (0, 0, lags - 1, 0)).unfold(1, lags, 1)[:, -positions:].flip(-1)
    return rearrange(reached, "batch pos channel tap -> batch pos tap channel") * kappa.unsqueeze(-3)


def recurrence_edit(
    kv: Float[Tensor, "batch pos head d_k d_v"],
    A: Complex[Tensor, "head mode"],
    B: Complex[Tensor, "head mode"],
    C: Complex[Tensor, "head mode"],
    D: Float[Tensor, " head"],
    initial: Complex[Tensor, "batch head d_k d_v mode"] | None,
    *,
    edit_decay: Edit | None = None,
    edit_write: Edit | None = None,
    edit_state: Edit | None = None,
) -> tuple[Float[Tensor, "batch pos head d_k d_v"], Complex[Tensor, "batch head d_k d_v mode"]] | None:
    """What edits of the recurrence change, in y and in the last state: 0 where they only look, None if there
    are none.

    The recurrence is run twice, plainly and edited; the gradients are those of the edited run.
    """
    if edit_decay is None and edit_write is None and edit_state is None:
        return None
    kv = kv.contiguous()  # for one order of memory in both runs, and so one rounding
    decay, write = A.expand(*kv.shape[:2], -1, -1).clone(), kv.unsqueeze(-1) * B[:, None, None]

    def read(states: Tensor) -> Tensor:
        return 2 * (states * C[:, None, None]).sum(-1).real + D[:, None, None] * kv

    with torch.no_grad():
        plain = linear_scan(decay[:, :, :, None, None].expand_as(write), write, initial)
        y, last = read(plain), plain[:, -1]
    if edit_decay is not None:
        decay = edit_as_real("decays", edit_decay, decay)
    if edit_write is not None:
        write = edit_as_real("writes", edit_write, write)
    decay = decay[:, :, :, None, None].expand_as(write)
    if edit_state is not None:
        states = scan_with_edits(decay, write, edit_states_as_real(edit_state), initial)
    else:
        states = linear_scan(decay, write, initial)
    return read(states) - y, states[:, -1] - last


# Inside, kv and y have their d_k d_v entries a head as axes before the position, where products with k and q,
# and their sums, are of whole rows: with the axes last, as hooks show them, they are several times slower.
ENTRIES_FIRST, ENTRIES_LAST = "batch d_k d_v pos head", "batch pos head d_k d_v"


def entries_first(x: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch d_head pos head"]:
    return x.permute(0, 3, 1, 2).contiguous()


def see(hook: Hook, x: Float[Tensor, "batch d_k d_v pos head"]) -> Float[Tensor, "batch d_k d_v pos head"]:
    """x after a hook has seen it, entries last."""
    if not hook.attached:
        return x
    seen = hook(rearrange(x, f"{ENTRIES_FIRST} -> {ENTRIES_LAST}").contiguous())
    # In one order of memory, so that sums round the same whatever a hook returns.
    return rearrange(seen, f"{ENTRIES_LAST} -> {ENTRIES_FIRST}").contiguous()


def conv_entries(
    kv: Float[Tensor, "batch d_k d_v pos head"],
    filter: Float[Tensor, "lag head"] | Float[Tensor, "batch lag head"],
) -> Float[Tensor, "batch d_k d_v pos head"]:
    """Each head's filter applied to all its entries."""
    if filter.ndim == 3:
        filter = filter.repeat_interleave(kv.shape[1] * kv.shape[2], dim=0)
    return long_conv(kv.flatten(0, 2), filter).unflatten(0, kv.shape[:3])


def causal_matrix(
    q: Float[Tensor, "batch pos head d_head"],
    k: Float[Tensor, "batch pos head d_head"],
    filter: Float[Tensor, "lag head"] | Float[Tensor, "batch lag head"],
) -> Float[Tensor, "batch head pos pos"]:
    """M_ij = K_{i-j} (q_i . k_j) for j <= i, else 0."""
    scores = einsum(q, k, "batch i head d_head, batch j head d_head -> batch head i j")
    return scores * toeplitz(filter.mT).to(scores.dtype)
