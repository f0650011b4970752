// Checks of all arguments before the first write. The error text is one sentence, kept per thread.
#pragma once

#include "fastdiff/ops.h"
#include "fastdiff/schema.h"

namespace fastdiff {

// Stores the text for fd_last_error() and returns the status.
int fail(int status, const char* format, ...) __attribute__((format(printf, 2, 3)));
const char* last_error();

int check(const fd_randn_args& a);
int check(const fd_q_sample_args& a);
int check(const fd_reverse_step_args& a);
int check(const fd_step_log_prob_args& a);
int check(const fd_q_posterior_args& a);
int check(const fd_reparameterize_args& a);
int check(const fd_noise_mse_args& a);
int check(const fd_gaussian_kl_args& a);
int check(const fd_discretized_gaussian_nll_args& a);
int check(const fd_vlb_terms_args& a);
int check(const fd_group_norm_silu_args& a);

}  // namespace fastdiff
