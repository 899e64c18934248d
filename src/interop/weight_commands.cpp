#include "dalle/interop/weight_commands.h"

#include "dalle/core/error.h"
#include "dalle/core/logging.h"
#include "dalle/core/str.h"
#include "dalle/interop/openai_dvae.h"
#include "dalle/storage/run_checkpoints.h"
#include "dalle/storage/torch_file.h"

namespace dalle::interop {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSafetensors = ".safetensors";
constexpr const char* kStateDict = ".pt";

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
  if (kind != "openai-dvae") {
    throw ConfigError(Problem{"import-weights", "a kind of weights: openai-dvae",
                              kind.empty() ? "no argument" : "'" + kind + "'", "see import-weights --help"});
  }
  check_input("--encoder", encoder);
  check_input("--decoder", decoder);
  check_output("import-weights", out);
}

int run_import_weights(const ImportOptions& options) {
  const auto checkpoint =
      import_openai_dvae({.encoder = options.encoder, .decoder = options.decoder, .image_size = options.image_size});
  make_parent(options.out);
  if (options.out.extension() == kSafetensors) {
    storage::write_bare_checkpoint(options.out, checkpoint);
  } else {
    storage::save_checkpoint(options.out, checkpoint);
  }
  log_info(str(options.out.string(), ": dVAE, ", size_text(checkpoint.model), ", identity ",
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
