// The kernels of every level, which api.cpp calls after it has checked the arguments.
#pragma once

#include "fastdiff/ops.h"

#define FD_DECLARE(level)                                                                 \
    namespace fastdiff::level {                                                           \
    void randn(const fd_randn_args& args);                                                \
    void q_sample(const fd_q_sample_args& args);                                          \
    void reverse_step(const fd_reverse_step_args& args);                                  \
    void reverse_step_guidance(const fd_reverse_step_args& args);                         \
    void reverse_step_rescale(const fd_reverse_step_args& args);                          \
    void reverse_step_threshold(const fd_reverse_step_args& args);                        \
    void step_log_prob(const fd_step_log_prob_args& args);                                \
    void q_posterior(const fd_q_posterior_args& args);                                    \
    void reparameterize(const fd_reparameterize_args& args);                              \
    void noise_mse(const fd_noise_mse_args& args);                                        \
    void gaussian_kl(const fd_gaussian_kl_args& args);                                    \
    void discretized_gaussian_nll(const fd_discretized_gaussian_nll_args& args);          \
    void vlb_terms(const fd_vlb_terms_args& args);                                        \
    void group_norm_silu(const fd_group_norm_silu_args& args);                            \
    }

FD_DECLARE(baseline)
FD_DECLARE(avx2)
FD_DECLARE(avx512)

#undef FD_DECLARE
