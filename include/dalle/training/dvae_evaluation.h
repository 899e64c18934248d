// What a dVAE makes of held-out pictures: bounds for three kinds of code, picture quality, use of the codebook, a sheet.
//
// The codes: "relaxed" is the Gumbel-softmax sample at the current temperature, which training optimises; "hard" is the
// draw from q with the same noise, which the true bound asks for; "argmax" is the likeliest code, which stage 2 learns and
// sampling decodes. nll_X is -ln p(x | code) in nats per sub-pixel. The bounds
//   elb_relaxed = nll_relaxed + KL(q || uniform),   elb_hard = nll_hard + KL(q || uniform),
//   elb_argmax = nll_argmax + ln V a position: the KL of a code that is certain,
// are negative evidence lower bounds per sub-pixel, with the KL's true weight of 1 whatever weight training gives it: lower
// is better, and elb_hard and elb_argmax bound -ln p(x) from above. elb_gap = elb_hard - elb_relaxed is what the relaxation
// hides (2.1). A vector-quantised model has one kind of code, the certain one.
#pragma once

#include <string>
#include <vector>

#include "dalle/data/dataset.h"
#include "dalle/models/dvae.h"
#include "dalle/training/config.h"
#include "dalle/training/task.h"

namespace dalle::training {

/// Over all held-out pictures that the config names, shared out among `ranks`, which make as many passes through `runner`;
/// the same on all of them. Needs the weights in place and no gradients.
Metrics evaluate_dvae(const models::Dvae& model, const DvaeTraining& config, const data::Dataset& validation,
                      double temperature, distributed::Communicator& ranks,
                      layers::BlockRunner& runner = layers::plain_runner());

/// Names of evaluate_dvae()'s numbers.
std::vector<std::string> dvae_metric_names(const models::DvaeConfig& config);

/// The first pictures of `shown`: original, and what each kind of code makes of it.
Sheet reconstruction_sheet(const models::Dvae& model, const DvaeTraining& config, const data::Dataset& shown,
                           double temperature, const std::string& title);

}  // namespace dalle::training
