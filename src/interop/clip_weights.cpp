#include "dalle/interop/clip_weights.h"

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "dalle/config/fields.h"
#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/str.h"
#include "dalle/models/clip.h"
#include "dalle/text/clip_bpe.h"
#include "weight_file.h"

namespace dalle::interop {
namespace {

using storage::NamedTensor;

constexpr int64_t kHeadDim = 64;  // of every published ViT of these sizes; no tensor's shape tells it

/// Keeps the names that start with `prefix`, without it; all stay as they are where there is none, or with `only_if_all` not all.
void strip_prefix(std::vector<NamedTensor>& tensors, const std::string& prefix, bool only_if_all) {
  const auto starts = [&](const NamedTensor& entry) { return entry.name.starts_with(prefix); };
  const auto count = std::count_if(tensors.begin(), tensors.end(), starts);
  if (count == 0 || (only_if_all && count != std::ssize(tensors))) return;
  std::erase_if(tensors, [&](const auto& entry) { return !starts(entry); });
  for (auto& entry : tensors) entry.name.erase(0, prefix.size());
}

/// Numbers that TorchScript archives hold beside the weights, and the causal mask.
bool is_no_weight(const NamedTensor& entry) {
  return entry.name == "input_resolution" || entry.name == "context_length" || entry.name == "vocab_size" ||
         entry.name == "attn_mask" || entry.name.ends_with(".attn_mask");
}

void refuse_other_kinds(const ForeignWeights& weights) {
  struct Kind {
    const char *prefix, *what;
  };
  static constexpr std::array<Kind, 6> kinds{{{"visual.layer1.", "one with a ResNet as its image tower"},
                                              {"visual.trunk.", "one with an image tower of timm"},
                                              {"logit_bias", "a SigLIP"},
                                              {"text.transformer.", "one with a text tower of its own kind"},
                                              {"text_model.", "one with the names of Hugging Face's transformers"},
                                              {"text_decoder.", "a CoCa"}}};
  for (const auto& [prefix, what] : kinds) {
    for (const auto& entry : weights.tensors) {
      if (entry.name.starts_with(prefix)) {
        weights.fail("a CLIP with a vision transformer, under OpenAI's names", str(what, " (", entry.name, ")"));
      }
    }
  }
}

std::vector<int64_t> shape_of_rank(const ForeignWeights& weights, const std::string& name, size_t rank) {
  const auto shape = weights.shape(name);
  if (shape.size() != rank) weights.fail(str(name, " with ", rank, " dimensions"), dalle::str(at::IntArrayRef(shape)));
  return shape;
}

int64_t count_layers(const ForeignWeights& weights, const std::string& prefix) {
  constexpr int64_t kMaxLayers = 1000;
  const int64_t layers = weights.largest_number(prefix) + 1;
  if (layers < 1 || layers > kMaxLayers) weights.fail(str("1 to ", kMaxLayers, " layers ", prefix, "N"), str(layers));
  return layers;
}

int64_t count_heads(const ForeignWeights& weights, const std::string& tower, int64_t dim) {
  if (dim % kHeadDim != 0) weights.fail(str("a width of the ", tower, " divisible by ", kHeadDim), str(dim));
  return dim / kHeadDim;
}

models::ClipConfig infer_clip_config(const ForeignWeights& weights) {
  models::ClipConfig config;
  const auto patches = shape_of_rank(weights, "visual.conv1.weight", 4);
  const int64_t positions = shape_of_rank(weights, "visual.positional_embedding", 2)[0];
  const auto side = static_cast<int64_t>(std::llround(std::sqrt(static_cast<double>(positions - 1))));
  if (side < 1 || side * side + 1 != positions) {
    weights.fail("a square of patches and one more row in visual.positional_embedding", str(positions, " rows"));
  }
  config.vision_dim = patches[0];
  config.patch_size = patches[3];
  config.image_size = side * config.patch_size;
  config.vision_layers = count_layers(weights, "visual.transformer.resblocks.");
  config.vision_heads = count_heads(weights, "image tower", config.vision_dim);
  const auto tokens = shape_of_rank(weights, "token_embedding.weight", 2);
  config.text_vocab_size = tokens[0];
  config.text_dim = tokens[1];
  config.text_context = shape_of_rank(weights, "positional_embedding", 2)[0];
  config.text_layers = count_layers(weights, "transformer.resblocks.");
  config.text_heads = count_heads(weights, "text tower", config.text_dim);
  config.embed_dim = shape_of_rank(weights, "text_projection", 2)[1];
  config.tokenizer_kind = text::TokenizerKind::kClipBpe;
  if (config.text_context < 3) weights.fail("at least 3 text positions", str(config.text_context));
  return config;
}

// CLIP's vocabulary, of `ids` pieces with start and end of text as `model` has them.
text::ClipBpe load_vocabulary(const std::filesystem::path& file, int64_t ids, const std::string& model) {
  const auto fail = [&](const std::string& got) {
    throw CheckpointError(Problem{
        .place = file.string(),
        .expected = str("a CLIP vocabulary of ", ids - 2, " pieces, start and end of text apart, as ", model, " has"),
        .got = got,
        .hint = "scripts/clip_vocabulary.sh gets the published file"});
  };
  const std::string bytes = read_file(file);
  if (!text::ClipBpe::is_vocabulary(bytes)) fail(str("another kind of file, ", bytes.size(), " bytes"));
  const auto vocabulary = [&] {
    try {
      return text::ClipBpe::from_bytes(bytes);
    } catch (const CheckpointError& error) {
      throw CheckpointError(str(file.string(), ": ", error.what()));
    }
  }();
  if (vocabulary.vocab_size() + 2 != ids) fail(str(vocabulary.vocab_size(), " pieces"));
  return vocabulary;
}

}  // namespace

storage::Checkpoint import_clip(const ClipFiles& files) {
  ForeignWeights weights{read_weight_file(files.weights), files.weights.string()};
  strip_prefix(weights.tensors, "state_dict.", /*only_if_all=*/false);
  strip_prefix(weights.tensors, "module.", /*only_if_all=*/true);
  std::erase_if(weights.tensors, is_no_weight);
  refuse_other_kinds(weights);
  models::ClipConfig config = infer_clip_config(weights);
  config.activation = files.quick_gelu ? layers::Activation::kQuickGelu : layers::Activation::kGelu;
  for (auto& [name, tensor] : weights.tensors) {
    if (name == "logit_scale" && tensor.numel() == 1) tensor = tensor.reshape({});  // open_clip may hold it as [1]
  }
  const text::ClipBpe tokenizer = load_vocabulary(files.tokenizer, config.text_vocab_size, weights.place);
  auto checkpoint = weights.into_checkpoint(
      models::Clip(config), "clip", config::emit_yaml(config::dump(config)),
      str("the tensors of a CLIP with ", config.vision_layers, " layers of ", config.vision_dim, " for pictures of ",
          config.image_size, " pixels and ", config.text_layers, " of ", config.text_dim, " for text"));
  checkpoint.tokenizer = tokenizer.file_bytes();
  checkpoint.identities["tokenizer"] = tokenizer.identity();
  return checkpoint;
}

}  // namespace dalle::interop
