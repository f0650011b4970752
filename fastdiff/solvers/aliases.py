"""The names of samplers and schedulers in other programs, and what they are here: ComfyUI, A1111's
web UI, diffusers and k-diffusion.

`Sampler(solver=…)`, `timestep_spacing` and the command line accept them, and `fastdiff solvers
--names comfyui` prints the table. A name that fastdiff has itself means fastdiff's. An alias is the
same formula, with the options that make its steps those of the other program; noise is fastdiff's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Alias(NamedTuple):
    """What a sampler's name stands for.

    Attributes:
        solver: a registered solver.
        options: of it, which the user's own replace.
        spacing: a grid, where the name says one.
        note: how it differs from the other program's, as part of a table.
    """

    solver: str
    options: Mapping[str, Any] = {}
    spacing: str | None = None
    note: str = ""


class Names(NamedTuple):
    """The names of one program.

    Attributes:
        samplers: name -> alias.
        schedulers: name -> (grid, note).
        others: names that are no solver or grid here -> what to use instead.
    """

    samplers: Mapping[str, Alias]
    schedulers: Mapping[str, tuple[str, str]]
    others: Mapping[str, str]


_GPU = "noise of the same kind on every device"
_TAU = "noise at all levels, or between tau_min and tau_max"
_CFG = "its guidance needs the unconditional prediction in the step"
_HEUN_3M = {"as_published": True, "solver_type": "heun"}
_SA = {"predictor_order": 3, "corrector_order": 4}
_EXP_SDE = {"r": 1.0, "solver_type": "phi_2"}

COMFYUI = Names(
    samplers={
        "euler": Alias("euler"),
        "euler_ancestral": Alias("euler_ancestral"),
        "heun": Alias("heun"),
        "heunpp2": Alias("heunpp2"),
        "exp_heun_2_x0": Alias("exp_heun"),
        "exp_heun_2_x0_sde": Alias("seeds2", _EXP_SDE),
        "dpm_2": Alias("kdpm2"),
        "dpm_2_ancestral": Alias("kdpm2_ancestral"),
        "lms": Alias("lms"),
        "dpmpp_2s_ancestral": Alias("dpm++2s_ancestral"),
        "dpmpp_sde": Alias("dpm++sde"),
        "dpmpp_sde_gpu": Alias("dpm++sde", note=_GPU),
        "dpmpp_2m": Alias("dpm++2m"),
        "dpmpp_2m_sde": Alias("dpm++2m_sde"),
        "dpmpp_2m_sde_gpu": Alias("dpm++2m_sde", note=_GPU),
        "dpmpp_2m_sde_heun": Alias("dpm++2m_sde", {"solver_type": "heun"}),
        "dpmpp_2m_sde_heun_gpu": Alias("dpm++2m_sde", {"solver_type": "heun"}, note=_GPU),
        "dpmpp_3m_sde": Alias("dpm++3m_sde", _HEUN_3M),
        "dpmpp_3m_sde_gpu": Alias("dpm++3m_sde", _HEUN_3M, note=_GPU),
        "ddpm": Alias("ddpm"),
        "ddim": Alias("ddim"),
        "lcm": Alias("lcm"),
        "ipndm": Alias("ipndm"),
        "ipndm_v": Alias("ipndm_v", note="as_published=True has the published weights"),
        "deis": Alias("deis", note="interpolates in ln rho, ComfyUI in the time of a VP schedule"),
        "res_multistep": Alias("res_2m"),
        "res_multistep_ancestral": Alias("res_2m_ancestral"),
        "gradient_estimation": Alias("gradient_estimation"),
        "er_sde": Alias("er_sde", note="as_published=True has the published third order"),
        "seeds_2": Alias("seeds2"),
        "seeds_3": Alias("seeds3"),
        "sa_solver": Alias("sa", _SA, note=_TAU),
        "sa_solver_pece": Alias("sa", {**_SA, "pece": True}, note=_TAU),
        "uni_pc": Alias("unipc", {"order": 3, "solver_type": "bh1"}),
        "uni_pc_bh2": Alias("unipc", {"order": 3, "solver_type": "bh2"}),
    },
    schedulers={
        "simple": ("simple", ""),
        "sgm_uniform": ("sgm_uniform", ""),
        "karras": ("karras", ""),
        "exponential": ("exponential", ""),
        "ddim_uniform": ("ddim_uniform", "n levels where n does not divide T, ComfyUI more"),
        "beta": ("beta", "visits timestep 0 too, ComfyUI ends one quantile earlier"),
        "normal": ("normal", ""),
        "linear_quadratic": ("linear_quadratic", ""),
        "kl_optimal": ("kl_optimal", "of sigma/alpha in flow schedules too"),
        "beta57": ("beta57", "of RES4LYF"),
        "bong_tangent": ("bong_tangent", "of RES4LYF; a share of the largest level"),
    },
    others={
        "dpm_fast": "sample_dpm_fast of the drop-ins for k-diffusion",
        "dpm_adaptive": "sample_dpm_adaptive of the drop-ins for k-diffusion",
        "euler_cfg_pp": _CFG,
        "euler_ancestral_cfg_pp": _CFG,
        "dpmpp_2s_ancestral_cfg_pp": _CFG,
        "dpmpp_2m_cfg_pp": _CFG,
        "res_multistep_cfg_pp": _CFG,
        "res_multistep_ancestral_cfg_pp": _CFG,
        "gradient_estimation_cfg_pp": _CFG,
    },
)

_PLAIN = {
    "DPM++ 2M": Alias("dpm++2m"),
    "DPM++ SDE": Alias("dpm++sde"),
    "DPM++ 2M SDE": Alias("dpm++2m_sde"),
    "DPM++ 2M SDE Heun": Alias("dpm++2m_sde", {"solver_type": "heun"}),
    "DPM++ 2S a": Alias("dpm++2s_ancestral"),
    "DPM++ 3M SDE": Alias("dpm++3m_sde", _HEUN_3M),
    "Euler a": Alias("euler_ancestral"),
    "Euler": Alias("euler"),
    "LMS": Alias("lms"),
    "Heun": Alias("heun"),
    "DPM2": Alias("kdpm2"),
    "DPM2 a": Alias("kdpm2_ancestral"),
    "DDIM": Alias("ddim"),
    "PLMS": Alias("pndm", {"improved_start": True}),
    "UniPC": Alias("unipc", {"order": 3, "solver_type": "bh1"}),
    "LCM": Alias("lcm"),
}
_WITH_GRID = {
    "Karras": (
        "DPM++ 2M",
        "DPM++ SDE",
        "DPM++ 2M SDE",
        "DPM++ 2M SDE Heun",
        "DPM++ 2S a",
        "DPM++ 3M SDE",
        "LMS",
        "DPM2",
        "DPM2 a",
    ),
    "Exponential": ("DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 3M SDE"),
}
A1111 = Names(
    samplers=_PLAIN
    | {
        f"{name} {grid}": _PLAIN[name]._replace(spacing=grid.lower())
        for grid, names in _WITH_GRID.items()
        for name in names
    },
    schedulers={
        "Uniform": ("normal", ""),
        "Karras": ("karras", ""),
        "Exponential": ("exponential", ""),
        "Polyexponential": ("exponential", "the same at its default exponent 1"),
        "SGM Uniform": ("sgm_uniform", ""),
        "KL Optimal": ("kl_optimal", ""),
        "Align Your Steps": ("ays", "ays_sdxl for Stable Diffusion XL"),
        "Simple": ("simple", ""),
        "Normal": ("normal", ""),
        "DDIM": ("ddim_uniform", "n levels where n does not divide T"),
        "Turbo": ("trailing", ""),
    },
    others={
        "DPM fast": "sample_dpm_fast of the drop-ins for k-diffusion",
        "DPM adaptive": "sample_dpm_adaptive of the drop-ins for k-diffusion",
        "Restart": "its jumps back in noise are no grid; see the solver repaint",
        "DDIM CFG++": _CFG,
        "Beta": "quantiles in sigma there, in time here: the grid beta",
        "Align Your Steps GITS": "its levels as sigmas=",
        "Align Your Steps 11": "its levels as sigmas=",
        "Align Your Steps 32": "its levels as sigmas=",
        "Automatic": "the grid of the sampler's own name",
    },
)

_CLASSES = {
    "CosineDPMSolverMultistep": Alias("dpm++2m_sde"),
    "DDIM": Alias("ddim"),
    "DDIMInverse": Alias("ddim_inverse"),
    "DDIMParallel": Alias("ddim"),
    "DDPM": Alias("ddpm"),
    "DDPMParallel": Alias("ddpm"),
    "DEISMultistep": Alias("deis", {"order": 2}),
    "DPMSolverMultistep": Alias("dpm++2m", note="dpm++2m_sde for sde-dpmsolver++"),
    "DPMSolverSDE": Alias("dpm++sde"),
    "DPMSolverSinglestep": Alias("dpm++2s"),
    "EDMDPMSolverMultistep": Alias("dpm++2m", spacing="karras"),
    "EDMEuler": Alias("euler", spacing="karras"),
    "EulerAncestralDiscrete": Alias("euler_ancestral"),
    "EulerDiscrete": Alias("euler"),
    "FlowMatchEulerDiscrete": Alias("flow_euler"),
    "FlowMatchHeunDiscrete": Alias("flow_heun"),
    "HeunDiscrete": Alias("heun"),
    "IPNDM": Alias("ipndm"),
    "KDPM2AncestralDiscrete": Alias("kdpm2_ancestral"),
    "KDPM2Discrete": Alias("kdpm2"),
    "LCM": Alias("lcm"),
    "LMSDiscrete": Alias("lms"),
    "PNDM": Alias("pndm", {"runge_kutta": True}, note="the default of skip_prk_steps"),
    "RePaint": Alias("repaint"),
    "SASolver": Alias("sa"),
    "TCD": Alias("tcd"),
    "UniPCMultistep": Alias("unipc"),
}
DIFFUSERS = Names(
    samplers={f"{name}Scheduler": alias for name, alias in _CLASSES.items()},
    schedulers={
        "use_karras_sigmas": ("karras", ""),
        "use_exponential_sigmas": ("exponential", ""),
        "use_beta_sigmas": ("beta", "in sigma there, in time here"),
    },
    others={
        "any class, with diffusers' own numbers": "the drop-in class of that name in fastdiff",
        "use_lu_lambdas": "the grid lu",
        "use_flow_sigmas": "Schedule.flow",
    },
)

# k-diffusion's functions are the samplers that ComfyUI calls by the rest of their names
_FUNCTIONS = (
    "euler",
    "euler_ancestral",
    "heun",
    "dpm_2",
    "dpm_2_ancestral",
    "lms",
    "dpmpp_2s_ancestral",
    "dpmpp_sde",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m_sde",
)
K_DIFFUSION = Names(
    samplers={f"sample_{name}": COMFYUI.samplers[name] for name in _FUNCTIONS},
    schedulers={
        "get_sigmas_karras": ("karras", ""),
        "get_sigmas_exponential": ("exponential", ""),
        "get_sigmas_polyexponential": ("exponential", "the same at its default exponent 1"),
    },
    others={
        "sample_dpm_fast": "the drop-in function of this name",
        "sample_dpm_adaptive": "the drop-in function of this name",
        "get_sigmas_vp": "its levels as sigmas=",
    },
)
PROGRAMS = {
    "comfyui": COMFYUI,
    "a1111": A1111,
    "diffusers": DIFFUSERS,
    "k_diffusion": K_DIFFUSION,
}
SAMPLERS: dict[str, Alias] = {
    k: v for names in PROGRAMS.values() for k, v in names.samplers.items()
}
SCHEDULERS: dict[str, str] = {
    k: v[0] for names in PROGRAMS.values() for k, v in names.schedulers.items()
}


def grid_name(spacing: Any) -> Any:
    """Returns fastdiff's name of a grid, or the value itself where it is no alias."""
    return SCHEDULERS.get(spacing, spacing) if isinstance(spacing, str) else spacing
