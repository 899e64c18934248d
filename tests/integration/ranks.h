// One training as several processes of this machine.
#pragma once

#include <memory>

#include "integration/tiny_pipeline.h"
#include "support/rank_processes.h"

namespace dalle::integration {

/// A command as `size` ranks while they run.
class RankProcesses {
 public:
  using ArgumentsOf = std::function<std::vector<std::string>(int rank)>;
  using Adjust = std::function<void(int rank, Launch& launch)>;
  RankProcesses(int size, const std::string& command, const ArgumentsOf& arguments_of, const Adjust& adjust = nullptr) {
    const int port = testing::free_port();
    for (int rank = 0; rank < size; ++rank) {
      Launch launch{.environment = testing::rank_variables(rank, size, port)};
      if (adjust) adjust(rank, launch);
      processes_.push_back(std::make_unique<Process>(command, arguments_of(rank), launch));
    }
  }
  Process& rank(int number) { return *processes_.at(static_cast<size_t>(number)); }
  std::vector<Outcome> wait() {
    std::vector<Outcome> outcomes;
    for (auto& process : processes_) outcomes.push_back(process->wait());
    return outcomes;
  }

 private:
  std::vector<std::unique_ptr<Process>> processes_;
};

/// Trains, or resumes, the run `run` of `place` on `size` ranks, one thread each; what each of them ended with.
inline std::vector<Outcome> train_on_ranks(const Workplace& place, int size, const std::string& kind,
                                           const std::string& run, const std::vector<std::string>& more) {
  return RankProcesses(size, "train-" + kind,
                       [&](int) {
                         std::vector<std::string> arguments{"--run-dir", place.at(run), "--threads", "1"};
                         arguments.insert(arguments.end(), more.begin(), more.end());
                         return arguments;
                       })
      .wait();
}

inline void expect_all_ended_with(const std::vector<Outcome>& outcomes, int exit_code) {
  for (size_t rank = 0; rank < outcomes.size(); ++rank) {
    EXPECT_EQ(outcomes[rank].exit_code, exit_code) << "rank " << rank << ", signal " << outcomes[rank].signal << "\n"
                                                   << outcomes[rank].err;
  }
}

/// The parts that priors and CLIPs are made with: a tokenizer and a dVAE.
class Parts : public Workplace {
 public:
  explicit Parts(const std::string& name) : Workplace(name) {
    train_well("tokenizer", tokenizer_yaml(), "tokenizer");
    train_well("dvae", dvae_yaml(12), "dvae");
  }
};

/// A global batch of 8 with averages, clipping, validation and, for the prior, dropped pieces, captions and activations.
inline std::string spread_yaml(const std::string& kind, int64_t num_steps) {
  std::string yaml = kind == "dvae"   ? dvae_yaml(num_steps)
                     : kind == "vq"   ? dvae_yaml(num_steps) + "  kl_weight_steps: 4\n"
                     : kind == "clip" ? clip_yaml(num_steps)
                                      : prior_yaml(num_steps);
  const auto replace = [&](const std::string& from, const std::string& to) {
    const size_t at = yaml.find(from);
    if (at != std::string::npos) yaml.replace(at, from.size(), to);
  };
  replace("batch_size: 4", str("batch_size: 8\n  clip_norm: 1\n  validation_interval_steps: ", num_steps / 2));
  replace("bpe_dropout: 0", "bpe_dropout: 0.2\ndropout: 0.1\ncaption_dropout: 0.2");
  if (kind == "vq") {
    replace("model:\n", "model:\n  quantizer: vq\n");
    yaml += "vector_quantizer:\n  codebook_decay: 0.8\n  restart_share: 0.2\n";
  }
  return yaml + "validation:\n  sources:\n    - path: " + emoji("val.tar") + "\n      max_samples: 20\n" +
         "  batch_size: 4\n";
}

}  // namespace dalle::integration
