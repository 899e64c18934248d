#include "dalle/interop/weight_commands.h"

#include "dalle/core/error.h"
#include "dalle/core/logging.h"
#include "dalle/core/str.h"
#include "dalle/interop/clip_weights.h"
#include "dalle/interop/openai_dvae.h"
#include "dalle/storage/run_checkpoints.h"
#include "dalle/storage/torch_file.h"

namespace dalle::interop {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSafetensors = ".safetensors";
constexpr const char* kStateDict = ".pt";
constexpr const char* kOpenaiDvae = "openai-dvae";
constexpr const char* kOpenaiClip = "openai-clip";
constexpr const char* kOpenClip = "open-clip";

void check_input(const char* flag, const fs::path& path) {
  if (path.empty()) throw ConfigError(str("import-weights: expected ", flag, " FILE"));
  if (!fs::is_regular_file(path)) {
    throw ConfigError(Problem{str(flag, " ", path.string()), "a weight file",
                              fs::exists(path) ? "something else" : "nothing there", ""});
  }
}

void check_output(const std::string& command, const fs::path& out) {
  if (out.empty()) throw ConfigError(command + ": expected --out PATH");
  if (fs::exists(out) || fs::is_symlink(out)) {
    throw ConfigError(Problem{"--out " + out.string(), "a path where nothing is yet", "an existing file or folder",
                              "remove it, or choose another name"});
  }
}

void make_parent(const fs::path& out) {
  std::error_code error;
  if (out.has_parent_path()) fs::create_directories(out.parent_path(), error);
  if (error) throw FileError(str(out.parent_path().string(), ": cannot make this folder: ", error.message()));
}

std::string size_text(const std::vector<storage::NamedTensor>& tensors) {
  int64_t numbers = 0;
  for (const auto& entry : tensors) numbers += entry.tensor.numel();
  return str(tensors.size(), " tensors, ", numbers, " parameters");
}

}  // namespace

void ImportOptions::validate(const std::string&) const {
  const std::string kind = what.empty() ? "" : what[0];
  if (kind != kOpenaiDvae && kind != kOpenaiClip && kind != kOpenClip) {
    throw ConfigError(Problem{"import-weights",
                              str("a kind of weights: ", kOpenaiDvae, ", ", kOpenaiClip, " or ", kOpenClip),
                              kind.empty() ? "no argument" : "'" + kind + "'", "see import-weights --help"});
  }
  const bool is_clip = kind != kOpenaiDvae;
  if (what.size() != (is_clip ? 2u : 1u)) {
    throw ConfigError(Problem{"import-weights " + kind, is_clip ? "one weight file" : "--encoder and --decoder alone",
                              str(what.size() - 1, " files"), ""});
  }
  const auto refuse = [&](const char* flag, bool given) {
    if (given) throw ConfigError(str("import-weights ", kind, ": ", flag, " is not for this kind"));
  };
  if (is_clip) {
    check_input("FILE", what[1]);
    check_input("--tokenizer", tokenizer);
    refuse("--encoder", !encoder.empty());
    refuse("--decoder", !decoder.empty());
    refuse("--quick-gelu", quick_gelu && kind == kOpenaiClip);
  } else {
    check_input("--encoder", encoder);
    check_input("--decoder", decoder);
    refuse("--tokenizer", !tokenizer.empty());
    refuse("--quick-gelu", quick_gelu);
  }
  check_output("import-weights", out);
}

int run_import_weights(const ImportOptions& options) {
  const std::string& kind = options.what[0];
  const auto checkpoint =
      kind == kOpenaiDvae
          ? import_openai_dvae({options.encoder, options.decoder, options.image_size})
          : import_clip({options.what[1], options.tokenizer, kind == kOpenaiClip || options.quick_gelu});
  make_parent(options.out);
  if (options.out.extension() == kSafetensors) {
    storage::write_bare_checkpoint(options.out, checkpoint);
  } else {
    storage::save_checkpoint(options.out, checkpoint);
  }
  log_info(str(options.out.string(), ": ", checkpoint.kind, ", ", size_text(checkpoint.model), ", identity ",
               checkpoint.identities.at("model")));
  return 0;
}

void ExportOptions::validate(const std::string&) const {
  if (checkpoint.empty()) throw ConfigError("export-weights: expected a checkpoint");
  check_output("export-weights", out);
  if (out.extension() != kSafetensors && out.extension() != kStateDict) {
    throw ConfigError(Problem{"--out " + out.string(), "a name that ends in .safetensors or .pt",
                              "'" + out.extension().string() + "'", ""});
  }
}

int run_export_weights(const ExportOptions& options) {
  const fs::path path = storage::resolve_checkpoint(options.checkpoint);
  const auto parts = options.raw_weights ? storage::LoadParts::kModel : storage::LoadParts::kEvaluation;
  const auto checkpoint = storage::load_checkpoint(path, parts);
  make_parent(options.out);
  if (options.out.extension() == kSafetensors) {
    storage::write_bare_checkpoint(options.out, checkpoint);
  } else {
    storage::write_torch_state_dict(options.out, checkpoint.evaluation_weights());
  }
  log_info(str(options.out.string(), ": ", checkpoint.kind, ", ", size_text(checkpoint.evaluation_weights())));
  return 0;
}

}  // namespace dalle::interop
